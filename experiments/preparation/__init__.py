"""The pipeline of `prepare`, and the teacher's card."""
