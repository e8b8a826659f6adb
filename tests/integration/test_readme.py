"""The documents' commands work as they are on a corpus of one's own; so does the example of a loss; links lead on."""

import csv
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from datamodules.corpus import load_corpus, load_qrels
from datamodules.query_lists import read_query_lists, write_query_lists
from experiments.evaluation.typed import as_overrides
from helpers.processes import run_in
from helpers.runs import CONF

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
# what is not run here, and why
LISTED = {
    "make quickstart": "installs packages; its command is README's and the line behind it",
    "make test": "the tests themselves",
    "make lint": "another command of the tests' set-up",
    "make scifact": "minutes; the real model",
    "make mutants": "minutes; tests/robustness/test_mutants.py tries some",
    "make mteb": "installs the extra 'mteb'",
    "make docs": "continuous integration does",
    "python -m experiments.mteb": "needs the extra 'mteb'; tests/integration/test_mteb.py",
    "python -m experiments.criteria": "the runs here make a step or two, of which it says nothing; test_criteria.py",
    "python -m experiments.compare outputs/first/runs": "adapt only plans here; tests/integration/test_compare.py",
    "python -m experiments.dashboard": "needs an account and the extra 'dashboard'; tests/integration/test_wandb.py",
    ".venv/bin/python -m pytest": "the tests themselves",
    "PYTHONPATH=. python -m experiments.run --config-dir": "the test of a loss of one's own, below",
    "PYTHONPATH=. python -m experiments.prepare --config-dir": "the test of a teacher of one's own, below",
}
# what needs weights of the hub, a cluster or an hour: its configuration is composed
COMPOSED = (
    "hydra/launcher=",
    "teacher=ensemble",
    "outputs/lists/bge",
    "trainer=gpu",
    "experiments.bench",
    "exp=paper/search",
    "sets=beir14",
    "encoder@passage_encoder=mpnet",
    "exp=cadet",
    "exp=paper/cadet",
)


def block(before: str, text: str = README) -> str:
    return re.search(re.escape(before) + r".*?```\w*\n(.*?)```", text, re.DOTALL)[1]


def test_no_placeholder_is_left():
    assert not re.search(r"@@|TODO|XXX", README)


def test_readme_is_short_and_its_links_lead_on():
    assert len(README.splitlines()) <= 200
    for path in [*DOCUMENTS, ROOT / "ATTRIBUTION.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            assert "://" in target or (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_page_on_losses_shows_readmes_loss():
    page = (ROOT / "docs" / "how-to" / "own-loss.md").read_text()
    for before in ("`my_losses.py`:", "`my_conf/module/list_mle.yaml`:"):
        assert block(before) in page


def test_every_page_is_in_the_sites_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in ROOT.glob("docs/**/*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation, page


def commands() -> list[str]:
    """Every command in the documents: of code blocks in their order, then those within sentences."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            if kind:
                continue
            lines = re.sub(r" +#.*", "", re.sub(r"\\\n\s*", "", code)).splitlines()
            found += [line for line in lines if re.match(r"(\S+=\S+ )?(\S*python -m|make) |evaluation\.", line)]
        sentences = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        found += re.findall(r"`(python -m experiments\.[^`]*|make \w+)`", sentences)
    return list(dict.fromkeys(" ".join(line.split()) for line in found))


def words(line: str) -> list[str]:
    """The words of a command, as a shell reads them; optional ones left out."""
    return shlex.split(re.sub(r"\[key=value …\]", "", line), comments=True)


def run(folder: Path, module: str, *arguments: str) -> None:
    """Run a command in a folder, and have it end well."""
    status, said = run_in(folder, module, *arguments)
    assert status == 0, f"{module} {shlex.join(arguments)}: {said[-3000:]}"


def test_own_loss_needs_one_class_and_one_file(tmp_path, small_run):
    (tmp_path / "my_losses.py").write_text(block("`my_losses.py`:"))
    conf = tmp_path / "my_conf" / "module" / "list_mle.yaml"
    conf.parent.mkdir(parents=True)
    conf.write_text(block("`my_conf/module/list_mle.yaml`:"))
    module, *typed = re.search(r"PYTHONPATH=\. python -m (.*)", README)[1].split()
    own = ("name=", "trainer.max_epochs=")
    small = [option for option in small_run if not option.startswith(own)]
    run(tmp_path, module, *typed, *small, "trainer.max_epochs=6", "hydra.run.dir=run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["objective"] == "ListMLE" and results["name"] == "list_mle"
    with open(tmp_path / "run" / "metrics.csv") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_own_teacher_needs_one_class_and_one_file(own_corpus, tiny_model):
    page = (ROOT / "docs" / "how-to" / "own-teacher.md").read_text()
    (own_corpus / "my_teachers.py").write_text(block("`my_teachers.py`:", page))
    conf = own_corpus / "my_conf" / "teacher" / "shared_words.yaml"
    conf.parent.mkdir()
    conf.write_text(block("`my_conf/teacher/shared_words.yaml`:", page))
    module, *typed = re.search(r"PYTHONPATH=\. python -m (.*)", page)[1].split()
    small = [f"encoder.model={tiny_model}", "encoder.pooling=mean", "mine.candidates=10", "corpus=FOLDER"]
    run(own_corpus, module, *typed, *small)
    lists = list(read_query_lists(own_corpus / "outputs/lists/own/human.train.parquet"))
    assert lists and all(0 <= score <= 1 for found in lists for score in found.teacher_scores)


@pytest.fixture
def own_corpus(tmp_path, small_scifact, small_lists, typed_lists):
    """A folder in which what the documents name is there: a corpus and lists of one's own, a small SciFact."""
    for name in ("path/to/my_corpus", "FOLDER", "OTHER", "scifact", "data/msmarco", "fiqa"):
        shutil.copytree(small_scifact, tmp_path / name, ignore=shutil.ignore_patterns("lists"))
    shutil.copy(tmp_path / "data/msmarco/qrels/test.tsv", tmp_path / "data/msmarco/qrels/dev.tsv")
    files = {"TRAIN": "train", "HUMAN": "dev", "DEV": "held_out", "train": "train"}
    files |= {f"scifact/lists/{kind}.train": "train" for kind in ("human", "claim", "synthetic")}
    files |= {f"scifact/lists/{kind}.dev": "dev" for kind in ("human", "claim")}
    files["scifact/lists/synthetic.dev"] = "held_out"
    (tmp_path / "scifact/lists").mkdir()
    for name, part in files.items():
        corpus = name.split("/")[0] if "/" in name else "my_corpus" if name == "train" else "FOLDER"
        lists = [dataclasses.replace(q, corpus=corpus) for q in read_query_lists(typed_lists / f"{part}.parquet")]
        write_query_lists(tmp_path / f"{name}.parquet", lists, {"teacher": "made for tests"})
    write_rankings(tmp_path)
    own = tmp_path / "my_conf" / "exp" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(block("`my_conf/exp/mine.yaml`:", (ROOT / "docs" / "how-to" / "ablation.md").read_text()))
    abstracts = load_corpus(tmp_path / "FOLDER").texts.to_pylist()
    with open(tmp_path / "texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([["abstract"], *([text] for text in abstracts)])
    return tmp_path


def write_rankings(folder: Path) -> None:
    """Rankings as other tools leave them, of the test queries' relevant passages."""
    judged = load_qrels(folder / "scifact", "test")[1]
    lines = [f"{query} Q0 {passage} 1 1.5 x\n" for query, passages in judged.items() for passage in passages]
    for name in ("bm25s", "pyserini"):
        (folder / f"{name}.trec").write_text("".join(lines))
    found = ({"query_id": q, "results": [{"corpus_id": p, "score": 1} for p in of]} for q, of in judged.items())
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))


def write_as_the_papers_scripts(path: Path, folder: Path) -> None:
    """Lists as the paper's scripts leave them: two queries of a source passage, whose id is theirs; texts cut."""
    corpus = load_corpus(folder / "fiqa")
    texts = dict(zip(corpus.ids.to_pylist(), corpus.texts.to_pylist(), strict=True))
    with open(path, "w") as file:
        for found in read_query_lists(folder / "train.parquet"):
            scored = sorted(zip(found.teacher_scores, found.passage_ids, strict=True), reverse=True)
            passages = [{"docid": i, "text": texts[i][:2048].strip(), "rankt5_score": s} for s, i in scored]
            for query in (found.query, f"{found.query}, again"):
                file.write(json.dumps({"query": query, "passages": passages, "qid": scored[0][1]}) + "\n")


def small(module: str, line: str, model: Path, chat: Path, teacher: Path) -> list[str]:
    """What is put behind a command to make it small."""
    if module == "experiments.run":
        of_lists = ["data=lists", "data.train=[{path: TRAIN.parquet, corpus: FOLDER}]", "evaluation=beir"]
        reranked = [f"evaluation.dense.model={model}", "evaluation.dense.pooling=mean", "evaluation.depth=5"]
        return [
            f"encoder.model={model}",
            *([] if "exp=teacher" in line else ["encoder.pooling=mean"]),
            "trainer.max_steps=1",
            "trainer.accelerator=cpu",
            "logger=csv",
            "data.leak_jaccard=1.1",
            *(of_lists * line.startswith("evaluation.")),
            *(reranked * ("exp=teacher" in line)),
            *(["seed=1"] * ("seed=1,2,3" in line)),
            *(["arm=question", "list_count=5"] * ("query_types" in line)),
            # of four arms over a whole corpus one that reads lists and one that reads the corpus; one beside options
            *(["module=distillation,infonce_corpus"] * line.endswith("cranfield/objectives")),
            *(["module=distillation"] * ("cranfield/objectives " in line)),
            *(["module=distillation,infonce"] * line.endswith("scifact/objectives")),
            *(["module=infonce"] * ("scifact/objectives " in line)),
        ]
    sizes = ["generator.sampling={temperature: 0.8, max_tokens: 24, stop: [s, t]}", "generate.block_size=4"]
    sizes += ["generator.engine=transformers", "sample.size=6", "generate.language=null"]
    few = [f"+queries.{name}.limit=60" for name in ("title", "sentence")]
    filters = "{consistency_rank: null, teacher_first: false, min_length: 5, min_top_quantile: null}"
    return [
        f"encoder.model={model}",
        "encoder.pooling=mean",
        f"generator.model={chat}",
        *sizes,
        f"filter={filters}",
        *(few * ("cranfield_free" in line)),  # of thousands
        "mine.depth=20",
        "mine.candidates=10",
        *([f"teacher.model={teacher}"] * ("rankt5" in line)),
        *(["teacher.max_length=100"] * ("rankt5" in line or "teacher=classifier" in line)),
    ]


def check_composes(arguments: list[str], name: str) -> None:
    """Compose every job of a command."""
    if name == "evaluate":
        arguments = as_overrides(arguments)
    overrides = OverridesParser.create().parse_overrides([a for a in arguments if a != "-m"])
    with initialize_config_dir(str(CONF / "prepare" if name == "prepare" else CONF), version_base="1.3"):
        for job in BasicSweeper.split_arguments(overrides, None)[0]:
            assert compose(name, job, return_hydra_config=True)


def test_every_command_works_on_a_corpus_of_ones_own(own_corpus, tiny_model, tiny_chat_model, t5):
    to_cadet = ["--layout", "cadet", "--corpus", "path/to/my_corpus", "--output", "scores.jsonl"]
    run(own_corpus, "experiments.prepare", "export", "train.parquet", *to_cadet)
    write_as_the_papers_scripts(own_corpus / "beir.bge.fiqa.train.generated_queries.listwise.jsonl", own_corpus)
    runs, counts = 0, {"run": 0, "composed": 0, "listed": 0}
    every = commands()

    def order(line: str) -> tuple[bool, ...]:  # lists before what reads them, runs before what compares them
        return "cranfield_free" not in line, "--from" in line, "experiments.compare" in line

    for line in sorted(every, key=order):
        if any(line.startswith(begin) for begin in LISTED):
            counts["listed"] += 1
            continue
        if line.startswith("make"):
            raise AssertionError(f"{line}: neither run nor listed")
        given = ["python", "-m", "experiments.run", *words(line)] if line.startswith("evaluation.") else words(line)
        assert given[:2] == ["python", "-m"], line
        module, arguments = given[2], given[3:]
        if any(sign in line for sign in COMPOSED):
            check_composes(arguments, module.rpartition(".")[2])
            counts["composed"] += 1
            continue
        options = []
        if module == "experiments.run" and "--from" not in line:
            options = small(module, line, tiny_model, tiny_chat_model, t5)
            place = "outputs/runs/RUN" if "exp=teacher" in line else f"outputs/runs/2026-01-01_{runs}"
            options += ["hydra.sweep.dir=outputs/sweeps/SWEEP" if "-m" in arguments else f"hydra.run.dir={place}"]
            options += ["hydra.mode=RUN"] * ("query_types" in line)
            runs += 1
        elif module == "experiments.adapt":
            # to the end in test_adapt.py
            options = [f"encoder.model={tiny_model}", "encoder.pooling=mean", "elsewhere=[]"]
            options += ["plan=true"] * ("plan=" not in line)
        elif module == "experiments.evaluate":
            options = ["trainer.accelerator=cpu"]
        elif module == "experiments.prepare" and arguments[0] == "temperatures":
            options = [f"encoder.model={tiny_model}", "encoder.pooling=mean", "corpus=path/to/my_corpus"]
        elif module == "experiments.prepare" and arguments[0] not in ("import", "export", "inspect"):
            options = small(module, line, tiny_model, tiny_chat_model, t5)
        run(own_corpus, module, *arguments, *options)
        counts["run"] += 1
        if not (own_corpus / "RUN").exists() and (own_corpus / "outputs/runs/2026-01-01_0").exists():
            shutil.copytree(own_corpus / "outputs/runs/2026-01-01_0", own_corpus / "RUN")
    assert (own_corpus / "report" / "comparison.html").is_file()
    print(f"{len(every)} commands: {counts}")


def test_every_target_of_make_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for line in commands():
        if line.startswith("make"):
            assert re.search(rf"^{words(line)[1]}:", makefile, re.MULTILINE), line
