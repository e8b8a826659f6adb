"""Teachers: each gives pairs of a query and a passage scores, for the student to learn from."""

from retriever.teachers.base import PairScores, RetrievedPassages, Teacher
from retriever.teachers.ensemble import Ensemble
from retriever.teachers.run_fusion import RunFusion
