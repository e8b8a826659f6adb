"""python -m experiments.adapt, from a folder to the page: what it says, what it writes, and going on after a kill."""

import json
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from datamodules.query_lists import read_query_lists
from helpers.languages import PASSAGES, passages
from helpers.processes import end, run_in, start

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARTS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def typed(tiny_model, small_scifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    settings = [f"output_dir={folder}", "queries=150", "steps=4", "elsewhere=[]", f"encoder.model={tiny_model}"]
    return folder, [f"corpus={small_scifact}", *settings, "encoder.passage_max_length=64"]


def adapt(folder, *typed, status=0):
    code, output = run_in(folder, "experiments.adapt", *typed)
    assert code == status, output
    return output


def results(folder):
    found = {}
    for path in sorted(folder.glob("runs/*/results.json")):
        content = json.loads(path.read_text())
        found[content["name"]] = content["datasets"]
    return found


@pytest.fixture(scope="module")
def adapted(typed):
    folder, words = typed
    return folder / "done", adapt(folder, *words, f"hydra.run.dir={folder / 'done'}")


def test_one_command_goes_from_a_folder_to_a_page(adapted):
    folder, output = adapted
    assert "measured on 20 human queries (test)" in output and re.search(r"minutes +about [\d.]+ to [\d.]+", output)
    assert list(results(folder)) == ["distillation_corpus", "infonce_conventional"]
    said = (folder / "verdict.md").read_text().split("\n\n")
    assert re.match("Take |Keep the base model", said[0]) and said[0] in output
    page = (folder / "comparison.html").read_text()
    assert said[0] in page.replace("&#39;", "'").replace("&gt;", ">")


def test_its_parts_are_commands_that_run_alone(adapted):
    folder, output = adapted
    for command, name in {"prepare": "lists", "run": "objectives"}.items():
        path = folder / "settings" / "exp" / f"{name}.yaml"
        line = path.read_text().splitlines()[1].removeprefix("# ")
        assert line in output
        code, said = run_in(folder, f"experiments.{command}", *line.split()[3:])
        assert code == 0, said
    assert "is finished, and not run again" in said and len(list(folder.glob("runs/*/results.json"))) == 2


def test_its_settings_name_the_precision_that_it_chose(adapted):
    folder, output = adapted
    assert re.search(r"precision +32-true \(auto:", output)
    lists, runs = (OmegaConf.load(folder / "settings" / "exp" / f"{name}.yaml") for name in ("lists", "objectives"))
    assert lists.precision == runs.trainer.precision == "32-true", "whichever machine goes on"


def test_a_run_of_it_begins_a_second_round(adapted, tmp_path):
    folder, _ = adapted
    run = next(folder.glob("runs/*distillation_corpus*"))
    words = ["--from", str(folder / "lists"), f"tuned={run}", f"output={tmp_path / 'second'}"]
    code, said = run_in(folder, "experiments.prepare", *words)
    assert code == 0, said
    assert f"python -m experiments.run --from {run}" in said
    assert {path.name for path in tmp_path.glob("second/*.parquet")} == {p.name for p in folder.glob("lists/*.parquet")}


def test_a_folder_that_was_begun_otherwise_is_refused(typed, adapted, tmp_path):
    output = adapt(tmp_path, *typed[1], f"hydra.run.dir={adapted[0]}", "queries=160", status=2)
    assert "was begun with another queries (150; now 160)" in output


def test_a_plan_says_what_would_be_done_and_does_nothing(typed, tmp_path):
    _, words = typed
    output = adapt(tmp_path, *words, "plan=true", f"hydra.run.dir={tmp_path / 'planned'}")
    assert "4 steps of 16 lists each" in output and "encoder" not in output
    assert not (tmp_path / "planned" / "settings").exists()


def test_the_quick_starts_command_is_accepted(tmp_path):
    variable = re.search(r"^QUICKSTART := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    words = shlex.split(variable.replace("\\\n", " "))
    output = adapt(tmp_path, *words, "plan=true")
    for objective in ("distillation_corpus", "distillation", "combined", "infonce_conventional_warm"):
        assert objective in output
    assert "measured on 225 human queries (test)" in output and "24 steps of 64 lists each" in output


def test_a_corpus_without_human_queries_is_measured_on_lists_that_are_held_out(typed, small_scifact, tmp_path):
    _, [_, *words] = typed
    (tmp_path / "texts").mkdir()
    shutil.copy(small_scifact / "corpus.jsonl", tmp_path / "texts")
    more = [f"elsewhere=[{small_scifact}]", "seeds=[1,2]", "objectives=[distillation_corpus]"]
    typed = [f"corpus={tmp_path / 'texts'}", *words, *more, f"hydra.run.dir={tmp_path / 'out'}"]
    output = adapt(tmp_path, *typed)
    assert "made-up queries that are kept out of training" in output and "These queries are not people's" in output
    assert "Elsewhere (small): " in output
    settings = OmegaConf.load(tmp_path / "out" / "settings" / "exp" / "objectives.yaml")
    assert settings.evaluation.datasets[0].lists.endswith("sentence.test.parquet")
    assert all(list(sets) == ["texts-sentence", "small"] for sets in results(tmp_path / "out").values())
    assert len(list(tmp_path.glob("out/runs/*/results.json"))) == 2
    kept = {part: list(read_query_lists(tmp_path / "out" / "lists" / f"sentence.{part}.parquet")) for part in PARTS}
    sources = {part: {passage for found in lists for passage in found.positive_ids} for part, lists in kept.items()}
    assert kept["test"] and not sources["test"] & (sources["train"] | sources["dev"])
    with (tmp_path / "texts" / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "new", "text": "A new passage."}\n')
    assert "was begun with another content of the corpus" in adapt(tmp_path, *typed, status=2)


def test_after_a_kill_the_same_command_goes_on_to_the_same_figures(typed, adapted, tmp_path):
    _, words = typed
    words = [*words, f"hydra.run.dir={tmp_path / 'killed'}"]
    process = start(tmp_path / "killed", *words, module="experiments.adapt")
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("killed/runs/*/metrics.csv")):
        assert process.exitcode is None and time.monotonic() < deadline
        time.sleep(0.05)
    end(process)
    output = adapt(tmp_path, *words)
    assert "It goes on by the settings in" in output
    assert results(tmp_path / "killed") == results(adapted[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objectives=[distilation_corpus]"], "Did you mean 'distillation_corpus'"),
        (["corpus=nowhere"], "There is no data set 'nowhere'"),
        (["minutes=0.001"], "Give it more time"),
        (["step=3"], "There is no 'step'"),
        (["split=dev"], "split is 'dev'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(typed, tmp_path, words, message):
    output = adapt(tmp_path, *typed[1], *words, f"hydra.run.dir={tmp_path / 'wrong'}", status=2)
    assert message in output and "Traceback" not in output


def test_a_corpus_of_five_languages_is_adapted_to(typed, tmp_path):
    _, [_, *words] = typed
    lines = [
        {"_id": f"{code}{n}", "title": t, "text": x} for code in PASSAGES for n, (t, x) in enumerate(passages(code))
    ]
    (tmp_path / "towns").mkdir()
    (tmp_path / "towns" / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = ["objectives=[distillation_corpus]", "steps=2", f"hydra.run.dir={tmp_path / 'out'}"]
    output = adapt(tmp_path, f"corpus={tmp_path / 'towns'}", *words, *more)
    assert "BM25 (words as they are: no one language, or no stemmer for it)" in output
    settings = tmp_path / "out" / "settings" / "exp"
    assert OmegaConf.load(settings / "lists.yaml").mine.retrievers.bm25.bm25.language is None
    assert OmegaConf.load(settings / "objectives.yaml").data.corpus_scores.language is None
    lists = list(read_query_lists(tmp_path / "out" / "lists" / "sentence.train.parquet"))
    assert {passage[:2] for found in lists for passage in found.positive_ids} == set(PASSAGES)
    assert list(results(tmp_path / "out")) == ["distillation_corpus"]
