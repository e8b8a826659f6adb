"""What the processes of one run take from its first rank before there is a process group, however they were started."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from retriever.errors import InputError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch.distributed import Store

_VARIABLE = "EXPERIMENT_OF_FIRST_RANK"  # what the processes that Lightning starts find in their environment
_READING = timedelta(minutes=5)
_LONGEST = timedelta(days=1)  # a first rank that ends is noticed at once
_NUMBERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning looks for them
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")  # set where another program may have started the ranks


def is_first_rank() -> bool:
    """Whether this process speaks and writes for all: by Lightning, or by its launcher where that is not imported."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if lightning is not None:
        return lightning.rank_zero_only.rank == 0
    return int(next((os.environ[name] for name in _NUMBERS if name in os.environ), 0)) == 0


def number_of_process(num_nodes: int) -> tuple[int, int]:
    """This process's number among those that ask, and how many share a store: of a node's own children none does."""
    tasks = _tasks()
    if tasks is not None:
        return tasks.global_rank(), tasks.world_size()
    child = int(os.environ.get("LOCAL_RANK", 0))
    if child > 0:  # Lightning started this process, with its parent's environment
        return child, 1
    # one process on each node, which will start the others
    return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0))), num_nodes


def broadcast_from_rank_zero(key: str, find: Callable[[], str], num_nodes: int) -> str:
    """What ``find`` gives on the first rank, on all of them; it is called there alone.

    Args:
        key: what it is, the same on all ranks, once a command.
        find: gives a text.
        num_nodes: machines, where Lightning starts the processes of each.

    Raises:
        InputError: what ``find`` raised on the first rank, on all of them; there, another error is what it was.
    """
    number, sharing = number_of_process(num_nodes)
    inherited = json.loads(os.environ.get(_VARIABLE, "{}"))
    if sharing == 1 and number > 0 and key in inherited:
        return inherited[key]
    # before anything can go wrong here: the others notice at once where a first rank ends that they have met
    store = _store(number, sharing) if sharing > 1 else None
    value, wrong = "", None
    if sharing == 1 or number == 0:
        try:
            value = find()
        except Exception as error:
            wrong = error
    if store is not None:
        name = f"{key}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        if number == 0:
            store.set(name, json.dumps([value, wrong and (str(wrong) or repr(wrong))]))
        else:
            value, message = json.loads(store.get(name))
            wrong = message and InputError(message)
            store.set(f"{name}-{number}", "read")
        if number == 0 and wrong is not None:  # the store ends with this process
            from torch.distributed import DistStoreError

            with suppress(DistStoreError):  # one that died does not keep the others
                store.wait([f"{name}-{other}" for other in range(1, sharing)], _READING)
    if wrong is not None:
        raise wrong
    os.environ[_VARIABLE] = json.dumps(inherited | {key: value})
    return value


def _tasks() -> "ClusterEnvironment | None":
    """The program that started the ranks; None where Lightning will."""
    if not any(name in os.environ for name in _LAUNCHERS):
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    return next((e() for e in (TorchElasticEnvironment, SLURMEnvironment) if e.detect()), None)


@cache  # and so kept open: the first rank's must be there for the slowest
def _store(rank: int, world_size: int) -> "Store":
    """A store that the first rank opens where the process group will meet."""
    from lightning.fabric.plugins.environments import LightningEnvironment
    from torch.distributed import rendezvous

    tasks = _tasks() or LightningEnvironment()
    url = f"tcp://{tasks.main_address}:{tasks.main_port}"
    store, *_ = next(rendezvous(url, rank=rank, world_size=world_size))
    store.set_timeout(_LONGEST)
    return store
