"""Teachers: each gives pairs of a query and a passage scores, for the student to learn from."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from retriever.teachers.base import PairScores, RetrievedPassages, Teacher
    from retriever.teachers.ensemble import Ensemble
    from retriever.teachers.run_fusion import RunFusion
else:
    __getattr__ = import_when_used(__name__)
