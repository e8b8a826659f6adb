"""Losses: pure functions of scores, each by its formula and source."""
