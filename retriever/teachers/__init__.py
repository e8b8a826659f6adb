"""Teachers that read a query and a passage together and give the pair a score."""

from retriever.teachers.base import PairScores, Teacher

__all__ = ["PairScores", "Teacher"]
