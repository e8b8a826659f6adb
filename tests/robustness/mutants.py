"""Breaks the losses in hundreds of small ways, one at a time, and shows which breaks no test of theirs sees.

``make mutants`` tries every mutant, ``--every 12`` each twelfth; exit status 1 where one survives that
``EQUIVALENT`` does not explain. A mutant is one change in the body of one function: a sign, an operator, a comparison,
a constant, a call left out, two arguments swapped. It is put in place of the function's code inside the running
process, so that whoever has imported the function meets it; then the tests run until one fails.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest
from _pytest.runner import runtestprotocol

from helpers.objectives import CLASSES
from retriever import losses

UNIT = Path(__file__).parents[1] / "unit"
LOSSES = [module.name for module in pkgutil.iter_modules(losses.__path__) if module.name != "query_blocks"]
MODULES = [f"losses.{name}" for name in LOSSES]  # query_blocks.py changes memory alone
MODULES.append("agreement")  # which has the divergence over a corpus, of an objective and of dev lists
MODULES += dict.fromkeys(objective.__module__.removeprefix("retriever.") for objective in CLASSES)
TESTS = [
    f"test_{name}.py"
    for name in (
        *("matryoshka", "orthogonal", "ranking_losses", "infonce_options", "embedding_regression"),
        *("distillation_losses", "losses"),
    )
]
OF_CORPUS = (
    *("the_objectives_are_the_losses_of_inner_products", "the_divergence_is_that_of_plain_sums"),
    *("infonce_counts_negatives_as_they_weigh_and_leaves_other_positives_out", "gradients_are_right"),
    "scores_of_half_precision_are_computed_with_in_float32",
    "dev_lists_give_the_divergence_over_the_corpus_whatever_the_objective",
    *("extreme_scores_stay_finite", "what_a_batch_lacks_is_said", "only_what_is_needed_is_asked_for"),
)
TESTS += [f"test_corpus_objectives.py::test_{name}" for name in OF_CORPUS]
OF_HIDDEN = (
    *("a_hidden_passage_is_as_one_that_is_not_there", "the_teachers_first_is_one_that_is_not_hidden"),
    "a_hidden_source_in_anothers_list_is_no_negative",
)
TESTS += [f"test_hidden_sources.py::test_{name}" for name in OF_HIDDEN]
CROSS_ENTROPY = ("equals_its_enumeration", "with_one_positive_is_torchs", "is_finite_at_extreme_logits")
TESTS += [f"test_cross_encoder.py::test_listwise_cross_entropy_{name}" for name in CROSS_ENTROPY]
TESTS += [
    f"test_diagnostics.py::test_masked_share_{name}" for name in ("is_the_enumeration_of_the_pool", "of_a_small_pool")
]

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
NAMES = {"mean": "sum", "sum": "mean", "amax": "amin", "amin": "amax", "argmax": "argmin", "logsumexp": "amax"}
NAMES |= {"maximum": "minimum", "any": "all", "all": "any"}

# What changes nothing that a caller can see, and why: the function, the whole change → reason
EQUIVALENT = {
    (
        "cosine_distance",
        "cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=1) → "
        "cosine_similarity(at_least_float32(teacher), at_least_float32(student), dim=1)",
    ): "symmetric, and so is its gradient",
    ("EmbeddingRegression._distances", "self.distance(student, teacher) → self.distance(teacher, student)"): (
        "symmetric, and so is its gradient"
    ),
    ("EmbeddingRegression._distances", "width < teacher.shape[1] → width <= teacher.shape[1]"): (
        "all dimensions of a vector of length 1 have length 1"
    ),
    **{
        (distance, f"at_least_float32({side}) → {side}"): "the other side is in float32, and torch promotes this one"
        for distance in ("squared_distance", "cosine_distance")
        for side in ("student", "teacher")
    },
    (
        "listwise_jensen_shannon",
        "torch.logaddexp(student.masked_fill(~list_mask, 0.0), teacher.masked_fill(~list_mask, 0.0)) → "
        "torch.logaddexp(teacher.masked_fill(~list_mask, 0.0), student.masked_fill(~list_mask, 0.0))",
    ): "symmetric, and so is its gradient",
    (
        "listwise_jensen_shannon",
        "student.masked_fill(~list_mask, 0.0) → student",
    ): "one finite side of two is enough: the other's gradient is 0 / (1 + inf)",
    (
        "listwise_jensen_shannon",
        "teacher.masked_fill(~list_mask, 0.0) → teacher",
    ): "one finite side of two is enough: the other's gradient is 0 / (1 + inf)",
    (
        "listwise_jensen_shannon",
        "student.masked_fill(~list_mask, 0.0) → student.masked_fill(~list_mask, 1.0)",
    ): "finite, and masked again by the divergence",
    (
        "listwise_jensen_shannon",
        "teacher.masked_fill(~list_mask, 0.0) → teacher.masked_fill(~list_mask, 1.0)",
    ): "finite, and masked again by the divergence",
    (
        "_divergence",
        "(log_p - log_q).masked_fill(~mask, 0.0) → (log_p - log_q).masked_fill(~mask, 1.0)",
    ): "times a probability of e^-inf = 0, and its gradient likewise",
    (
        "excess_of_unknown",
        "torch.maximum(odds, bound) → torch.maximum(bound, odds)",
    ): "symmetric: a tie halves the gradient either way",
    (
        "excess_of_unknown",
        "at_least_float32(scores) → scores",
    ): "used once, in a difference with the list's scores, which are float32 or better",
    (
        "excess_of_unknown",
        "float('inf') → float('0')",
    ): "log-probabilities are at most 0, and are 0 without gradient in a list of one",
    (
        "excess_of_unknown",
        "counts.to(odds.dtype).log().expand_as(odds) → counts.to(odds.dtype).log()",
    ): "masked_fill broadcasts it",
    (
        "masked_log_softmax",
        "scores.masked_fill(~mask, float('-inf')).amax(1, keepdim=True).detach() → "
        "scores.masked_fill(~mask, float('-inf')).amax(1, keepdim=True)",
    ): "softmax is blind to a shift of the row, so that its gradients add up to 0 but for rounding",
    (
        "global_orthogonal",
        "count * (count - 1) or 1 → count * (count - 1) or 2",
    ): "without a pair the sums are 0, whatever they are divided by",
    (
        "_log_density",
        "scores.amax(1, keepdim=True).detach() → scores.amax(1, keepdim=True)",
    ): "the same: a shift of the row is taken off again",
    (
        "masked_log_softmax",
        "scores.masked_fill(~mask, 0.0) → scores.masked_fill(~mask, 1.0)",
    ): "finite, and masked again behind the division",
    (
        "likely_false_negatives",
        "float('-inf') → float('0')",
    ): "differs where all scores are negative: neither a share of the best nor 0 is below one then",
    (
        "listwise_cross_entropy",
        "(negatives - scores).masked_fill(~positive, 0.0) → (negatives - scores).masked_fill(~positive, 1.0)",
    ): "finite, and masked again in the next line",
    (
        "listwise_cross_entropy",
        "torch.logaddexp(difference, torch.zeros_like(difference)) → "
        "torch.logaddexp(torch.zeros_like(difference), difference)",
    ): "symmetric, and so is its gradient",
    ("lambda_loss", "scores.detach() → scores"): "an order has no gradient",
    (
        "_differences",
        "scores.masked_fill(~mask, 0.0) → scores.masked_fill(~mask, 1.0)",
    ): "finite, and masked again, or times a gain of 0, in all three losses",
    ("Matryoshka.__call__", "strict=True → strict=False"): "__init__ refuses lists of two lengths",
    ("Matryoshka._prefix", "-1 → 1"): "the last of two dimensions",
    ("InfoNCELoss._of_passages", "excluded.byte() → excluded"): "gathered as bytes, which every backend takes",
    ("InfoNCELoss.__init__", "negative_share or 0 → negative_share or 1"): "both are shares that are allowed",
    (
        "InfoNCELoss._excluded",
        "guide_queries is not None and guide_passages is not None → guide_queries is not None or guide_passages is not "
        "None",
    ): "for mypy: EncodedBatch.guide() has refused a batch that lacks either",
    ("InfoNCELoss._excluded_keys", "-1 → -2"): "keys are not negative: either chooses nothing",
    ("InBatchDistillation._unknown", "-1 → -2"): "keys are not negative: either chooses nothing",
    (
        "CombinedObjective.__init__",
        "min(distillation_weight, infonce_weight) → min(infonce_weight, distillation_weight)",
    ): "symmetric, but for a nan, which the sum shows",
}


@dataclass
class Mutant:
    """One changed function: where it is, what was changed, and the code that takes its place."""

    module: ModuleType
    function: str
    line: int
    change: str
    code: CodeType

    def explained(self) -> bool:
        """Whether ``EQUIVALENT`` says why no test can see it."""
        return (self.function, self.change) in EQUIVALENT

    def __str__(self) -> str:
        return f"{self.module.__name__}:{self.line} {self.function}: {self.change}"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may stand in a node's place."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        if isinstance(node.op, ast.Div | ast.Mult | ast.BitAnd | ast.BitOr):  # a temperature or a mask forgotten
            yield node.left
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OPERATORS[type(node.op)](), node.values)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        yield ast.Compare(node.left, [OPERATORS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and node.value in ("inf", "-inf"):
        yield ast.Constant("0")
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Call):
        yield from changes_of_a_call(node)


def changes_of_a_call(node: ast.Call) -> Iterator[ast.AST]:
    """The call by another name, left out, or with its first two arguments swapped."""
    method = node.func if isinstance(node.func, ast.Attribute) else None
    if method and method.attr in NAMES:
        yield ast.Call(ast.Attribute(method.value, NAMES[method.attr], ast.Load()), node.args, node.keywords)
    # left out: a method of a tensor gives the tensor, a function or a method of self its first argument
    of_name = method and isinstance(method.value, ast.Name) and method.value.id in ("torch", "math", "self")
    if method and not of_name and method.attr != "__init__":
        yield method.value
    elif node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    if len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        yield ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Every place below a node where something may be changed: (parent, field, number in the field's list).

    What an error says, annotations and default values, which are no part of a function's code, are left alone.
    """
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "defaults", "kw_defaults", "decorator_list"):
            continue
        for number, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr):
                yield node, field, number
                yield from places(child)


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods, by qualified name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{m.name}", m) for m in node.body if isinstance(m, ast.FunctionDef))


def code_of(code: CodeType, name: str) -> CodeType:
    """The code object of a qualified name inside a module's code."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return next((c for c in inner if c.co_qualname == name), None) or code_of(
        next(c for c in inner if name.startswith(f"{c.co_qualname}.")), name
    )


def mutants_of(module: ModuleType) -> Iterator[Mutant]:
    """All mutants of a module."""
    tree = ast.parse(inspect.getsource(module))
    for name, function in functions(tree):
        for parent, field, number in places(function):
            held = getattr(parent, field)
            node = held if number is None else held[number]
            for new in changes(node):
                new = ast.copy_location(copy.deepcopy(new), node)
                setattr(parent, field, new) if number is None else held.__setitem__(number, new)
                within = parent if isinstance(node, ast.Constant) else None
                code = code_of(compile(ast.fix_missing_locations(tree), module.__file__, "exec"), name)
                sound = live(module, name).__code__
                after = text(new, within)
                setattr(parent, field, held) if number is None else held.__setitem__(number, node)
                if code.co_freevars == sound.co_freevars:  # else, as without super(), it fits no living function
                    yield Mutant(module, name, node.lineno, f"{text(node, within)} → {after}", code)


def text(node: ast.AST, within: ast.AST | None) -> str:
    """How a node is shown: a constant by what it stands ``within``, an ``if`` by its condition."""
    return ast.unparse(within or (node.test if isinstance(node, ast.If) else node)).splitlines()[0]


def live(module: ModuleType, name: str) -> FunctionType:
    """The function of a qualified name, without its decorators."""
    found = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    return inspect.unwrap(found.fget if isinstance(found, property) else found)


class Mutation:
    """A pytest plugin: in place of one run of the tests, one for each mutant, until a test fails."""

    def __init__(self, modules: list[str], every: int) -> None:
        found = [m for name in modules for m in mutants_of(importlib.import_module(f"retriever.{name}"))]
        self.mutants = [m for m in found[::every] if not m.explained()]
        self.explained = len(found[::every]) - len(self.mutants)
        self.killed = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try all mutants; tests that have killed one of the same function go first, then one case of each test."""
        kills: Counter[tuple[str, pytest.Item]] = Counter()
        cases: Counter[str] = Counter()
        case = {}  # a test → its number among those of one function
        for item in session.items:
            name = item.nodeid.partition("[")[0]
            case[item] = cases[name]
            cases[name] += 1

        def fails(item: pytest.Item) -> bool:
            return any(report.failed for report in runtestprotocol(item, log=False))

        for mutant in self.mutants:
            function = live(mutant.module, mutant.function)
            sound, function.__code__ = function.__code__, mutant.code
            order = sorted(session.items, key=lambda i, f=mutant.function: (-kills[f, i], -kills["", i], case[i]))
            killer = next((item for item in order if fails(item)), None)
            function.__code__ = sound
            if killer is None:
                print("survived:", mutant, flush=True)
                continue
            assert not fails(killer), f"{killer.nodeid} fails without a mutant"
            kills.update([(mutant.function, killer), ("", killer)])
            self.killed += 1
        return True


def main() -> None:
    """Try the mutants and say how many were seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try each so-manieth mutant")
    parser.add_argument("modules", nargs="*", default=MODULES, help="of the package retriever, for example losses")
    arguments = parser.parse_args()
    mutation = Mutation(arguments.modules, arguments.every)
    options = ["-o", "addopts=", "-p", "no:terminal", "-p", "no:cacheprovider", "-W", "ignore"]
    if pytest.main([*options, *(str(UNIT / name) for name in TESTS)], plugins=[mutation]):
        sys.exit(1)
    survived = len(mutation.mutants) - mutation.killed
    tried = f"{len(mutation.mutants)} mutants, {mutation.killed} killed, {survived} survived"
    print(f"{tried}; {mutation.explained} explained")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
