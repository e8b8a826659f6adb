"""Losses between a student's embeddings and a teacher's of the same texts, as pure functions: one value per text."""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from retriever.losses.listwise import at_least_float32


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ‖x − t‖² of each text; between embeddings of length 1 that is 2 (1 − cos).

    Args:
        student: x, [N, D].
        teacher: t, [N, D].

    Returns:
        [N], float32 or better, each at least 0.
    """
    return (at_least_float32(student) - at_least_float32(teacher)).square().sum(1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute 1 − cos(x, t) of each text: directions count, lengths do not.

    Args:
        student: x, [N, D].
        teacher: t, [N, D].

    Returns:
        [N], float32 or better, in [0, 2].
    """
    return 1 - cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=1)
