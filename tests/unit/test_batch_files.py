"""Queries by batch files of a web API, and what they cost, against a stand-in on loopback."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from datamodules.corpus import load_corpus
from datamodules.pipeline.engines import batch as batches
from datamodules.pipeline.engines import choose_engine
from datamodules.pipeline.engines.batch_api import Batch
from datamodules.pipeline.engines.journal import AnswerJournal, Paid
from datamodules.pipeline.query_types import load_query_types
from datamodules.pipeline.stages.deduplicate import Deduplicate
from datamodules.pipeline.stages.generate import Generate
from datamodules.pipeline.stages.sample import Sample
from datamodules.pipeline.stages.stage import run_stage, stage_folder
from experiments.preparation.generation_plan import plan_lines
from helpers.batch_api import batch_api
from helpers.conversations import CONVERSATIONS, answers
from retriever.chat import Completion
from retriever.errors import InputError

FILES = ("queries.parquet", "rejected.parquet")
PRICE = {"input": 1000.0, "output": 4000.0}  # of a million tokens: a thousandth of a token


class Killed(BaseException):
    """What no code catches."""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def api():
    with batch_api() as found:
        yield found


@pytest.fixture(scope="module")
def sampled(small_scifact, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    corpus = load_corpus(str(small_scifact))
    deduplicated = run_stage(Deduplicate(corpus, near_jaccard=None), work)
    return corpus, run_stage(Sample(corpus, deduplicated, size=12), work)


@pytest.fixture
def stage(api, sampled, tmp_path):
    """Makes stage generate by an engine."""

    def make(engine="batch", attempts=2, block_size=5, sampling=None, model="tiny", **options):
        server = {"base_url": api.address} | options.pop("server", {})
        batch = {"requests": 10, "poll": 0.01, "retries": 2} | options.pop("batch", {})
        sampling = sampling or {"temperature": 0.7, "max_tokens": 12}
        chosen = choose_engine(engine, model, sampling, tmp_path, server=server, batch=batch, **options)
        types = load_query_types(["question", "claim", "zero_shot"])
        return Generate(*sampled, chosen, types, attempts=attempts, block_size=block_size, language=None)

    return make


def contents(output):
    return [output.file(name).read_bytes() for name in FILES]


def killed_at(monkeypatch, call, number=1):
    """Make the n-th call of something die in place of running."""
    owner, name = call
    whole, calls = getattr(owner, name), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return whole(*arguments, **options)

    monkeypatch.setattr(owner, name, dying)


# batches


def test_batches_give_the_bytes_that_a_server_gives(api, stage, tmp_path):
    served = run_stage(stage("server"), tmp_path / "server")
    asked, api.paid = len(api.paid), []
    made = run_stage(stage(), tmp_path / "batch")
    assert contents(made) == contents(served)
    assert len(api.paid) == len(set(api.paid)) == asked > 36  # some are asked for twice
    assert made.manifest["key"] == served.manifest["key"]
    counts, others = made.manifest["counts"], served.manifest["counts"]
    assert counts == others and counts["prompt_tokens"] > counts["answer_tokens"] > 0
    sizes = [len(api.files[batch["input_file_id"]].splitlines()) for batch in api.batches.values()]
    assert max(sizes) == 10 and sum(sizes) == asked and len(sizes) == 4 + -(-(asked - 36) // 10)
    folder = made.folder / "answers" / "batches"
    assert not list(folder.glob("*.jsonl")) and len(list(folder.glob("*.json"))) == len(sizes)


def test_a_file_has_no_more_than_its_bytes(api, stage, tmp_path):
    run_stage(stage(batch={"megabytes": 0.02, "requests": 1000}, attempts=1), tmp_path)
    sizes = [len(api.files[batch["input_file_id"]]) for batch in api.batches.values()]
    assert len(sizes) > 2 and max(sizes) <= 20_000


@pytest.mark.parametrize(
    ("place", "number"),
    [
        slow((batches.time, "sleep"), 1),  # all are submitted
        slow((batches.time, "sleep"), 2),
        slow((Batch, "save"), 1),  # the first is uploaded, and its id lost
        ((Batch, "save"), 3),  # the first is submitted, and its id lost
        slow((Batch, "save"), 4),
        slow((Batch, "save"), 6),
        slow((batches._Round, "_fetch"), 1),
        slow((batches._Round, "_fetch"), 3),
        slow((batches.Path, "unlink"), 1),  # its answers are kept already
    ],
)
def test_a_killed_process_pays_nothing_twice(api, stage, tmp_path, monkeypatch, place, number):
    whole = run_stage(stage(), tmp_path / "whole")
    paid, api.paid = sorted(api.paid), []
    before = len(api.batches)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, place, number)
        run_stage(stage(), tmp_path / "killed")
    resumed = run_stage(stage(), tmp_path / "killed")
    assert contents(resumed) == contents(whole) and sorted(api.paid) == paid
    assert len(api.batches) - before == before


@pytest.mark.slow
def test_an_answer_to_a_submission_that_is_lost_is_looked_for(api, stage, tmp_path, monkeypatch):
    submit = api.submit
    monkeypatch.setattr(api, "submit", lambda asked: submit(asked) and {"id": None}["none"])  # the connection breaks
    with pytest.raises(InputError, match="start again to go on"):
        run_stage(stage(), tmp_path)
    monkeypatch.undo()
    assert len(api.batches) == 1
    for number in range(3):  # of others, on the first pages of the list
        api.batches[f"other-{number}"] = {"id": f"other-{number}", "input_file_id": f"o{number}", "status": "completed"}
    run_stage(stage(), tmp_path)
    assert len(api.paid) == len(set(api.paid)) and len({b["input_file_id"] for b in api.batches.values()}) == len(
        api.batches
    )


@pytest.mark.slow
def test_processes_that_share_a_stage_pay_once(api, stage, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda made: run_stage(made, tmp_path), [stage(), stage()]))
    assert any(found) and len(api.paid) == len(set(api.paid))


@pytest.mark.slow
def test_requests_that_fail_or_expire_come_into_the_next_batch(api, stage, tmp_path):
    whole = run_stage(stage(), tmp_path / "whole")
    paid, api.paid = sorted(api.paid), []
    api.ends, api.wrong = ["completed", "expired", "expired"], paid[:5] + paid[:3]
    assert contents(run_stage(stage(), tmp_path / "faulty")) == contents(whole)
    assert sorted(api.paid) == paid and not api.wrong


@pytest.mark.slow
def test_what_fails_again_and_again_is_named_and_the_rest_kept(api, stage, tmp_path):
    run_stage(stage(), tmp_path / "whole")
    paid, api.paid = sorted(api.paid), []
    api.wrong = paid[:2] * 3
    with pytest.raises(InputError, match=r"2 requests have no answer after 2 retries; .*a failure of this test's"):
        run_stage(stage(), tmp_path / "faulty")
    run_stage(stage(), tmp_path / "faulty")
    assert sorted(api.paid) == paid


@pytest.mark.slow
def test_a_cancelled_batch_ends_it_and_is_gone_on_with(api, stage, tmp_path):
    api.ends = ["cancelled"]
    with pytest.raises(InputError, match=r"batch-0 was cancelled; 5 of its requests have no answer"):
        run_stage(stage(), tmp_path)
    run_stage(stage(), tmp_path)
    assert len(api.paid) == len(set(api.paid))


@pytest.mark.slow
def test_a_batch_that_the_server_refuses_is_submitted_anew_at_the_next_start(api, stage, tmp_path):
    api.ends = ["invalid"]
    with pytest.raises(InputError, match=r"refuses batch batch-0: 'as the test has it'.*Does it offer batches"):
        run_stage(stage(), tmp_path)
    run_stage(stage(), tmp_path)
    assert len(api.paid) == len(set(api.paid))


@pytest.mark.slow
def test_a_server_with_a_full_queue_is_waited_for(api, stage, tmp_path):
    api.ends = ["completed", "token_limit_exceeded", "token_limit_exceeded"]
    run_stage(stage(), tmp_path)
    assert len(api.paid) == len(set(api.paid))
    api.ends = ["token_limit_exceeded"]
    with pytest.raises(InputError, match="as the test has it"):
        run_stage(stage(model="alone", attempts=1, batch={"requests": 100}), tmp_path)


@pytest.mark.slow
def test_a_server_goes_on_where_batches_end(api, stage, tmp_path):
    whole = run_stage(stage("server"), tmp_path / "whole")
    api.paid, api.ends = [], ["completed", "cancelled"]
    with pytest.raises(InputError, match="cancelled"):
        run_stage(stage(batch={"requests": 20}), tmp_path / "both")
    kept = len(api.paid)
    assert contents(run_stage(stage("server"), tmp_path / "both")) == contents(whole)
    assert 20 <= kept < len(api.paid) == len(set(api.paid))


@pytest.mark.slow
def test_answers_that_were_paid_for_survive_a_kill_in_a_block(api, stage, tmp_path, monkeypatch):
    whole = run_stage(stage("server"), tmp_path / "whole")
    paid, api.paid = sorted(api.paid), []
    killed = stage("server", server={"parallel": 1})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, (killed.engine.client, "read"), 8)
        run_stage(killed, tmp_path / "killed")
    for path in (stage_folder(killed, tmp_path / "killed") / "answers").glob("*.jsonl"):
        path.write_bytes(path.read_bytes() + b'{"request": "a line that was cut o')
    assert contents(run_stage(stage("server"), tmp_path / "killed")) == contents(whole)
    assert sorted(set(api.paid)) == paid and len(api.paid) == len(paid) + 1  # the one under way


def test_an_answer_that_two_processes_have_counts_once(tmp_path):
    journals = [AnswerJournal(), AnswerJournal()]
    for journal in journals:
        journal.open(tmp_path)
    for journal in journals:
        journal.add([Paid("x", "mice", True, 10, 2)])
        journal.refresh()
    assert [journal.prompt_tokens for journal in journals] == [10, 10]


# plan, price, budget


@pytest.mark.parametrize("engine", ["server", "batch"])
@pytest.mark.parametrize("share", [slow(0.2), 0.6, slow(0.95)])
def test_a_budget_is_never_passed_and_what_is_done_is_kept(api, stage, tmp_path, engine, share):
    whole = run_stage(stage(engine, price=PRICE), tmp_path / "whole")
    counts = whole.manifest["counts"]
    cost = counts["cost"]
    assert cost == pytest.approx((counts["prompt_tokens"] + 4 * counts["answer_tokens"]) / 1000, abs=1e-6)
    paid, api.paid = len(api.paid), []
    work, options = tmp_path / "short", {"price": PRICE, "server": {"parallel": 4}, "batch": {"requests": 7}}
    poor = stage(engine, budget=share * cost, **options)
    with pytest.raises(InputError, match=rf"generator\.budget is .*{'What is done so far is kept'}.*larger"):
        run_stage(poor, work)
    spent = poor.engine.usage()["cost"]
    assert 0.5 * share * cost < spent <= share * cost and len(poor.engine.journal.answers) == len(api.paid)
    assert contents(run_stage(stage(engine, budget=2 * cost, **options), work)) == contents(whole)
    assert len(api.paid) == paid


@pytest.mark.slow
def test_a_plan_counts_by_the_tokenizer_where_there_is_one(api, stage, tmp_path, tiny_chat_model):
    made = stage(model=str(tiny_chat_model), price=PRICE, attempts=3)
    lines = plan_lines(made, tmp_path)
    conversations = [talk for number in range(3) for talk in made._conversations(number, 0)[0]]
    tokens = sum(made.engine.prompt_tokens.count(conversations))
    assert lines["prompts"] == "36: 3 query types for 12 passages" and not api.paid
    assert (
        lines["tokens"]
        == f"{tokens:,} of prompts, counted by the tokenizer of {tiny_chat_model}; at most 432 of answers"
    )
    assert f"{(tokens + 4 * 432) / 1000:,.2f}" in lines["cost"] and "up to 2 times more" in lines["attempts"]
    other = stage(attempts=1)
    lines = plan_lines(other, tmp_path)
    size = sum(sum(-(-len(turn["content"].encode()) // 4) for turn in talk) for talk in conversations)
    assert lines["tokens"].startswith(f"{size:,} of prompts, estimated as UTF-8 bytes / 4") and "so far" not in lines
    assert "generator.price is null" in lines["cost"]
    output = run_stage(other, tmp_path)
    lines = plan_lines(stage(attempts=1), tmp_path)
    assert f"{output.manifest['counts']['prompt_tokens']:,}" in lines["so far"] and str(output.folder) in lines["left"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 1.0}, "generator.budget needs generator.price"),
        ({"budget": 0.0, "price": PRICE}, "generator.budget is 0.0; it must be a finite number above 0"),
        ({"price": {"input": 1.0}}, "generator.price: output is missing"),
        ({"price": {"input": -1.0, "output": 1.0}}, r"generator.price.input is -1.0"),
        ({"budget": 1.0, "price": PRICE, "sampling": {"temperature": 0.5}}, "need generator.sampling.max_tokens"),
        ({"batch": {"requests": 0}}, "generator.batch.requests is 0"),
        ({"batch": {"retries": -1}}, "generator.batch.retries is -1"),
        ({"server": {"requests_per_minute": 0}}, "generator.server.requests_per_minute is 0"),
    ],
)
def test_a_bad_setting_is_named(stage, options, words):
    with pytest.raises(InputError, match=words):
        stage(**options)


# limits of rates


@pytest.mark.slow
def test_a_server_that_says_when_to_come_again_is_waited_for(api, stage):
    engine, api.busy = stage("server", server={"parallel": 1, "retries": 1}).engine, 1
    began = time.monotonic()
    assert len(answers(engine, CONVERSATIONS[:2])) == 2
    assert time.monotonic() - began >= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"requests_per_minute": 600}, {"tokens_per_minute": 12_000}])
def test_requests_are_spread_over_a_minute(api, stage, limit):
    engine = stage("server", server=limit, sampling={"max_tokens": 10}).engine
    turns = engine.prompt_tokens.count(CONVERSATIONS[:6])
    share = 0.1 if "requests_per_minute" in limit else 60 * (min(turns) + 10) / 12_000
    began = time.monotonic()
    answers(engine, CONVERSATIONS[:6])
    assert 5 * share <= time.monotonic() - began < 3
    assert len(api.paid) == 6


def test_what_the_server_kept_is_read_whatever_it_holds(api, stage, tmp_path, monkeypatch):
    """A text with a line separator of Unicode's is one line of JSON."""
    odd = "mice\u2028grow\x85tumours"
    monkeypatch.setattr(
        "helpers.batch_api.completion",
        lambda body: {"choices": [{"message": {"content": odd}, "finish_reason": "length"}], "usage": {}},
    )
    output = run_stage(stage(attempts=1), tmp_path)
    journal = [line for path in (output.folder / "answers").glob("*.jsonl") for line in path.read_bytes().split(b"\n")]
    found = [json.loads(line) for line in journal if line]
    assert {(line["text"], line["finished"], line["answer_tokens"]) for line in found} == {(odd, False, 0)}
    half = Completion("grow\ud800", {"finish_reason": "stop"}, {"prompt_tokens": None})
    assert Paid.of("x", half, 7) == Paid("x", "grow?", True, 7, 0, 7)
