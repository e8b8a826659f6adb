"""Errors of configuration and input as one sentence on standard error, without a stack trace."""

import logging
import os
import re
import select
import shutil
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from callbacks.reliability.termination import terminate_gracefully
from datamodules.storage.files import disk_full, is_disk_full
from experiments.cli.arguments import OF_ANY_NAME
from experiments.cli.quick_hydra import start_quickly
from experiments.cli.rerun import NAME
from experiments.cli.shared_run_dir import FRESH
from experiments.conf import CONF
from retriever.errors import InputError, causes, did_you_mean
from retriever.printable import printable

_NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch has no type for it


def run_kindly(application: Callable[[], None]) -> None:
    """Run a Hydra application; exit with status 2 and one message where the user can mend what is wrong.

    At SIGTERM it ends with status 143 within seconds.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, in place of printing its own report and exiting
    logging.raiseExceptions = False  # else a full disk makes a stack trace of every line that cannot be logged
    terminate_gracefully()
    start_quickly()
    try:
        application()
    except BrokenPipeError:
        if not _reader_left():
            raise
        # whoever reads the output, as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell says of one that SIGPIPE ended
    except Exception as error:
        if _is_lost_worker(error):
            what = str(error).strip().splitlines()[0]
            sys.exit(f"error: Ray lost a job's process ({what}). The same command with this hydra.sweep.dir goes on.")
        _end_kindly(error)


def single(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate a Hydra task: what a single job's user can mend ends it here, before Hydra tells all overrides.

    Nor is its folder left, where nothing came into it.
    """

    @wraps(task)
    def job(config: DictConfig) -> Any:
        try:
            return task(config)
        except Exception as error:
            hydra = HydraConfig.get()
            if hydra.mode == RunMode.MULTIRUN:
                raise
            folder = Path(hydra.runtime.output_dir)
            made = str(folder) in FRESH and {p.name for p in folder.glob("*")} <= {".hydra", f"{hydra.job.name}.log"}
            if is_for_users(error) and made:
                shutil.rmtree(folder, ignore_errors=True)
            _end_kindly(error)

    return job


def _end_kindly(error: Exception) -> NoReturn:
    """Exit with one message, if the user can mend it."""
    if not (is_for_users(error) or is_disk_full(error) or _is_memory_full(error) or _hydras(error)):
        raise error
    sys.stderr.write(printable(f"error: {explain(error)}\n"))
    sys.exit(2)


def is_for_users(error: BaseException) -> bool:
    """Whether an error says by itself what a user can mend."""
    return isinstance(error, InputError | HydraException | OmegaConfBaseException)


def _reader_left() -> bool:
    """Whether nobody reads the output any more; False where that cannot be told."""
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return bool(output.poll(0))
    except (AttributeError, OSError):
        return False


def _is_memory_full(error: BaseException) -> bool:
    found_by_torch = isinstance(error, RuntimeError) and _NO_HOST_MEMORY in str(error)
    return isinstance(error, MemoryError) or found_by_torch or _is_of_gpu(error)


def _is_of_gpu(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # where it has not been imported, it raised nothing
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _is_lost_worker(error: Exception) -> bool:
    """Whether a process that Ray ran a job in has died, and not the job raised an error."""
    errors = getattr(sys.modules.get("ray"), "exceptions", None)
    return errors is not None and isinstance(error, errors.RayError) and not isinstance(error, errors.RayTaskError)


def explain(error: BaseException) -> str:
    """What to tell the user: the innermost InputError, the valid keys beside a wrong one, or the error's own text."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, InputError):
            return _at_its_place(str(cause), str(error))
    if is_disk_full(error):
        named = [cause.filename for cause in chain if isinstance(cause, OSError) and cause.filename]
        return disk_full(named[-1] if named else "A file")
    if _is_memory_full(error):
        return _full_memory(error)
    for cause in chain:
        # a key that is not there: OmegaConf's errors know the node that was asked
        parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
        if isinstance(parent, DictConfig) and key is not None and key not in parent:
            return _unknown_key(parent, key)
    group = re.match(r"Could not override '([\w/@.]+)'", str(chain[0]))
    if group and NAME in sys.argv:
        return (
            f"{group[1]} is a group, and --from takes the settings of a run: override values "
            f"({group[1]}.…=…), or begin a run without --from."
        )
    if isinstance(chain[0], MissingConfigException):
        return _missing_option(chain[0])
    own = _hydras(chain[0]) or str(chain[0]).strip()
    if chain[-1] is not chain[0] and isinstance(chain[-1], TypeError | ValueError):
        return f"{own.splitlines()[0]} ({chain[-1]})"
    return own


def _at_its_place(said: str, by_hydra: str) -> str:
    """A message of an encoder, whose settings it calls ``encoder.…``, with the place that they have."""
    place = re.search(r"TextEncoder.*full_key: (\S+)$", by_hydra, re.DOTALL)
    return said if place is None else re.sub(r"(?<![\w.])encoder\.(?=[a-z_])", f"{place[1]}.", said)


def _hydras(error: BaseException) -> str | None:
    """A sentence with advice for what Hydra says without, or in several lines; None for what it says well."""
    said = str(error).strip()
    if isinstance(error, OverrideParseException):
        reason = said.removeprefix(f"Error parsing override {error.override!r}").strip().splitlines()[0]
        return (
            f"{error.override!r} cannot be read as key=value ({reason}). Close each bracket and quote; a value that "
            "itself holds '=', brackets, commas or quotes goes into quotes of its own, and all of it into the shell's: "
            "\"key='value'\"."
        )
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(([^=]+)=(.*?))'", said):
        override, key, values = several.groups()
        return (
            f"{override!r} has several values for one run. For a run of each, say -m in front; for a list, "
            f"'{key}=[{values}]'; for one text, \"{key}='{values}'\"."
        )
    if there := re.match(r"Could not append to config. An item is already at '(.*)'", said):
        return f"{there[1]} is there already: say {there[1]}=… without the +."
    if group := re.match(r"Could not override '([^']+)'. No match in the defaults list", said):
        return f"{group[1]} has no choice yet that could be changed: say +{group[1]}=… (if it is a group)."
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", said):
        return f"{missing[1]} has no default, and is not set: say {missing[1]}=…."
    if isinstance(error, OmegaConfBaseException) and "nterpolation" in said:
        places = [error.full_key] if error.full_key else [a for a in sys.argv if "${" in a]
        return f"{said.splitlines()[0]} (see {', '.join(places) or 'your configuration files'})."
    if said.startswith("Config group override must be a string or a list"):  # Hydra does not say which
        typed = [(a, CONF / a.partition("=")[0].lstrip("+"), a.partition("=")[2]) for a in sys.argv if "=" in a]
        wrong = [a for a, group, file in typed if group.is_dir() and not (group / f"{file}.yaml").is_file()]
        return f"A group takes the name of one of its files, and no other value: {', '.join(wrong)} does not."
    if isinstance(error, OSError) and error.filename and _makes_run_folder(error):
        return f"The run folder {error.filename} cannot be made ({error.strerror}): name another in hydra.run.dir."
    return None


def _makes_run_folder(error: BaseException) -> bool:
    """Whether Hydra raised it before it called the application."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(f.name in ("run_job", "_save_config") and "hydra" in Path(f.filename).parts for f in frames) and not any(
        f.name == "application" for f in frames
    )


def _full_memory(error: BaseException) -> str:
    where = "The GPU's" if _is_of_gpu(error) else "This machine's"
    said = str(error).strip().split(". ")[0] or type(error).__name__
    return (
        f"{where} memory is full ({said}). Lower token_budget (and module.uncheckpointed_tokens, where set): it bounds "
        "the memory of a step whatever the batch size. Frozen passages (module.train_passage_encoder=false) and "
        "encoder.lora take less, too."
    )


def _unknown_key(parent: DictConfig, key: Any) -> str:
    place, valid = parent._get_full_key(""), sorted(map(str, parent.keys()))
    if OmegaConf.is_missing(parent, key):
        setting = f"{place}.{key}".lstrip(".")
        return f"{setting} has no default, and is not set: say {setting}=…."
    if place and not valid and place not in OF_ANY_NAME:
        return f"There is no {key!r} in {place}, which follows another section, or is empty: set {key!r} in that one."
    said = f"There is no {key!r} in {place or 'the configuration'}; it has {', '.join(valid)}."
    if place in OF_ANY_NAME:
        out = f", and ~{place}.{valid[0]} leaves one out" if valid else ""
        return f"{said} A + adds one beside these: '+{place}.{key}=…'{out}."
    return f"{said}{did_you_mean(key, valid)}"


class KindParser(ArgumentParser):
    """An argument parser whose errors name the nearest option or choice; so do those of its commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """None are unknown, lest a command's be told of by a parser that does not have its options."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def as_options(self, message: str) -> str:
        """A message whose advice names settings (``on_bad_list=drop``), with this command's options in their place."""
        options = {o.lstrip("-").replace("-", "_"): o for action in self._actions for o in action.option_strings}
        return re.sub(r"\b(\w+)=(\w+)", lambda s: f"{options[s[1]]} {s[2]}" if s[1] in options else s[0], message)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        options = [option for action in self._actions for option in action.option_strings]
        choices = [str(choice) for action in self._actions for choice in action.choices or ()]
        words = [word.strip("',:").partition("=")[0] for word in message.split("(choose")[0].split()]
        wrong = [w for w in words if w.startswith("--") and w not in options]
        hints = [did_you_mean(word, options) for word in wrong]
        if "invalid choice" in message:
            hints.append(did_you_mean(words[-1], choices))
        super().error(printable(message) + next(filter(None, hints), ""))


def _missing_option(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file)
    group, _, option = missing.partition("/")
    folder = CONF / group
    shipped = {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")}
    valid = sorted(name for name in shipped | set(error.options or ()) if not Path(name).name.startswith("_"))
    if not valid:
        return str(error).strip()
    plugins = " Is its plugin installed? pip install '.[cluster]' brings launchers."
    return (
        f"There is no {option!r} in {group}; it has {', '.join(valid)}.{did_you_mean(option, valid)}"
        f"{plugins if group == 'hydra' else ''}"
    )
