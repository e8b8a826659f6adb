"""What a hostile corpus, list file, model folder, configuration, run folder or archive cannot do: one test for each."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import logging
import pickle
import re
import shutil
import stat
import sys
import zipfile
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from callbacks.reporting.templates import render
from datamodules.corpus import find_dataset, load_corpus
from datamodules.query_lists import QueryList, read_query_lists, write_query_lists
from datamodules.storage import archives
from experiments import compare as compare_module
from experiments import prepare as prepare_module
from experiments import run as run_module
from experiments.cli.redact import _redact_overrides, redact_arguments
from experiments.cli.rerun import read_run
from experiments.cli.targets import check_arguments, check_targets
from experiments.comparison import formats
from experiments.comparison.changes import Change, Changes
from experiments.comparison.formats import to_csv
from experiments.comparison.report import write_report
from experiments.comparison.sheets import Sheet
from experiments.comparison.tables import compare
from experiments.lists import command as list_files
from experiments.settings.encoders import SPECS
from experiments.settings.precision import without_auto
from experiments.training.train import run_experiment
from helpers.run_folders import values, write_run
from helpers.runs import CONF, config_of, prepare_config_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.printable import printable

pytestmark = pytest.mark.slow

SCRIPT = '<script>alert(1)</script><img src=x onerror="alert(2)">'


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def trace(tmp_path):
    """A file that is there if foreign code ran."""
    path = tmp_path / "foreign-code-ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.is_file(), "the payload works"
    path.unlink()
    return path


# model folders and checkpoints


@pytest.mark.parametrize("where", ["encoder", "cross"])
def test_weights_of_a_model_folder_are_never_unpickled(tiny_model, tmp_path, trace, where):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Payload(trace)}, folder / "pytorch_model.bin")
    target = {"encoder": "minilm", "cross": "cross_minilm"}[where]
    options = [f"encoder={target}", f"encoder.model={folder}", "encoder.passage_max_length=64"]
    options += ["encoder.pair_max_length=128"] * (where == "cross")
    with pytest.raises(Exception, match="could not be loaded"):
        instantiate(config_of(*options).encoder)
    assert not trace.exists()


def test_code_of_a_model_folder_is_not_run(tiny_model, tmp_path, trace):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "modeling.py").write_text(f"open({str(trace)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config", "AutoTokenizer": ["modeling.Model", None]}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Model"}))
    with pytest.raises(InputError, match=r"brings Python code .* say encoder\.trust_remote_code=true"):
        TextEncoder.from_pretrained(str(folder), pooling="mean")
    assert not trace.exists()


def test_a_checkpoint_is_never_unpickled(small_run, tmp_path, trace):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": Payload(trace), "epoch": 0, "global_step": 1}, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(Exception, match=r"(?i)weights.only|incomplete|checkpoint"):
        run_experiment(config_of(*small_run, f"resume={folder}"), folder)
    assert not trace.exists()


def test_arrays_are_never_unpickled(tmp_path, trace):
    np.save(tmp_path / "x.npy", np.array([Payload(trace)], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "x.npy")
    packages = ("retriever", "datamodules", "callbacks", "experiments", "hydra_plugins")
    sources = [path for package in packages for path in (CONF.parents[1] / package).rglob("*.py")]
    loaders = r"allow_pickle=True|weights_only=False|\bpickle\.load|yaml\.(unsafe_|full_)?load\("
    unsafe = re.compile(rf"{loaders}|(?<![.\w])(eval|exec)\(")
    found = [f"{path}: {m[0]}" for path in sources for m in unsafe.finditer(path.read_text())]
    assert len(sources) > 100 and not found, "these would run what others wrote"


# configurations


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "standard library"),
        ("subprocess.run", "standard library"),
        ("builtins.eval", "standard library"),
        ("shutil.rmtree", "standard library"),
        ("torch.load", r"allowed_targets=\[torch\]"),
        ("torch.hub.load", r"allowed_targets=\[torch.hub\]"),
        ("wandb.init", "allowed_targets"),
        ("experiments.cli.rerun.save_config", "allowed_targets"),
        ("datamodules.storage.files.write_json", "allowed_targets"),
        ("retriever.objectives.infonce.torch.load", "comes from 'torch.serialization'"),
        ("retriever.objectives.NoSuch", "cannot be imported"),
        (5, "dotted name of a class"),
    ],
)
def test_a_configuration_calls_the_projects_own_alone(target, message):
    config = config_of("name=x")
    OmegaConf.update(config, "trainer.plugins", [{"_target_": target}], force_add=True)
    with pytest.raises(InputError, match=message):
        check_targets(config)


def test_a_wrong_target_is_refused_before_it_is_imported(monkeypatch, capsys, tmp_path, trace):
    (tmp_path / "evil_module.py").write_text(f"open({str(trace)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of("name=x")
    config.module._target_ = "evil_module.Evil"
    OmegaConf.save(OmegaConf.to_container(config, resolve=True), tmp_path / "config.yaml")
    for argument in ("+module._target_=os.system", "module._target_=subprocess.run"):
        monkeypatch.setattr(sys, "argv", ["run.py", argument, f"hydra.run.dir={tmp_path}/x", "logger=csv"])
        with pytest.raises(SystemExit):
            run_module.main()
        assert "standard library" in capsys.readouterr().err or argument.startswith("+")
    monkeypatch.setattr(sys, "argv", ["run.py", "--from", str(tmp_path), f"hydra.run.dir={tmp_path}/x"])
    with pytest.raises(SystemExit):
        run_module.main()
    assert "allowed_targets=[evil_module]" in capsys.readouterr().err and not trace.exists()
    config = prepare_config_of("corpus=cranfield", "queries={title: {source: titles}}")
    config.teacher._target_ = "evil_module.Evil"
    OmegaConf.save(OmegaConf.to_container(config, resolve=True), tmp_path / "config.yaml")
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--from", str(tmp_path)])
    with pytest.raises(SystemExit):
        prepare_module.main()
    assert "allowed_targets=[evil_module]" in capsys.readouterr().err and not trace.exists()


def test_a_users_own_class_and_what_the_switch_names_may_be_called(monkeypatch, tmp_path):
    (tmp_path / "own_losses.py").write_text("from retriever.objectives import InfoNCE\nclass Mine(InfoNCE): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of("name=x")
    config.module._target_ = "own_losses.Mine"
    check_targets(config)
    config.repeats = "a/run/folder"
    with pytest.raises(InputError, match=r"allowed_targets=\[own_losses\]"):
        check_targets(config)
    config.allowed_targets = ["own_losses"]
    check_targets(config)
    config.allowed_targets = ["own_losses", "os"]
    config.module._target_ = "os.system"
    with pytest.raises(InputError, match="standard library"):
        check_targets(config)


def test_a_users_own_module_gives_on_its_own_classes_alone(monkeypatch, tmp_path):
    (tmp_path / "own_parts.py").write_text("from retriever.objectives import InfoNCE\nclass Mine(InfoNCE): pass\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text(
        "from os import system\nfrom shutil import rmtree\nfrom torch import load\nfrom wandb import init\n"
        "from own_parts import InfoNCE, Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of("name=x")
    config.module._target_ = "own_package.Mine"
    check_targets(config)
    for name, home in {
        "system": "posix", "rmtree": "shutil", "load": "torch.serialization", "init": "wandb.sdk.wandb_init",
        "InfoNCE": "retriever.objectives.infonce",
    }.items():  # fmt: skip
        config.module._target_ = f"own_package.{name}"
        with pytest.raises(InputError, match=f"comes from '{home}'; name what you mean itself"):
            check_targets(config)
    config.module._target_, config.repeats = "own_package.Mine", "a/run/folder"
    config.allowed_targets = ["own_package"]
    with pytest.raises(InputError, match="comes from 'own_parts'"):
        check_targets(config)


def test_every_shipped_configuration_may_call_what_it_calls():
    groups = ("encoder", "module", "evaluation", "trainer", "pruner", "data")
    files = [sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")) for group in groups]
    given = ["name=x", "evaluation.datasets=[{path: x}]", "data.train=[{path: x, corpus: y}]"]
    for names in zip_longest(*files):  # one of each group together: each is looked at by itself
        config = config_of(*given, *(f"{g}={name}" for g, name in zip(groups, names, strict=True) if name))
        check_targets(config)
        check_arguments(without_auto(config), SPECS)


def test_yaml_of_a_run_folder_makes_no_objects(tmp_path, trace):
    (tmp_path / "config.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {trace}']\n")
    with pytest.raises(InputError, match="not a configuration"):
        read_run(tmp_path)
    assert not trace.exists()


# names that are paths


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "a/b", "a\\b", "a\nb", ""])
def test_a_name_that_is_a_path_is_refused(small_run, small_scifact, tmp_path, name):
    with pytest.raises(InputError, match="files are called by it"):
        config = config_of(*small_run)
        config.name = name
        run_experiment(config, tmp_path)
    config = config_of(*small_run)
    config.evaluation.datasets = [{"path": str(small_scifact), "name": name or "."}]
    with pytest.raises(InputError, match="files are called by it"):
        run_experiment(config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == []


def test_an_id_that_is_a_path_names_no_file(small_run, small_scifact, small_lists, tmp_path):
    folder = tmp_path / "data" / "small"
    shutil.copytree(small_scifact, folder)
    first = json.loads((folder / "queries.jsonl").read_text().splitlines()[-1])["_id"]
    evil = "../../../../evil"
    for path in (folder / "queries.jsonl", folder / "qrels" / "test.tsv"):
        text = path.read_text().replace(f'"_id": "{first}"', f'"_id": "{evil}"')
        path.write_text(re.sub(rf"^{first}\t", f"{evil}\t", text, flags=re.M))
    options = [o for o in small_run if not o.startswith(("evaluation.datasets", "data.train"))]
    options += [
        f"data.train=[{{path: {small_lists}, corpus: {folder}}}]",
        f"evaluation.datasets=[{{path: {folder}}}]",
        "trainer.max_steps=1",
        "export=false",
        "data.leak_guard=off",
    ]
    run_experiment(config_of(*options), tmp_path / "run")
    assert evil in (tmp_path / "run" / "queries" / "small.json").read_text()
    assert not [p for p in (*tmp_path.rglob("evil*"), *tmp_path.parent.glob("evil*")) if p.stem == "evil"]


# archives


def archive_of(path, entries, links=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it stands; the constructor would tidy it
            info.compress_type = zipfile.ZIP_DEFLATED
            if name in links:
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    return path


@pytest.mark.parametrize(
    "entries",
    [
        {"scifact/corpus.jsonl": "{}", "../evil": "x"},
        {"scifact/../../evil": "x"},
        {"/tmp/evil": "x"},
        {"..\\evil": "x"},
        {"C:evil": "x"},
    ],
)
def test_an_archive_cannot_leave_its_folder(tmp_path, entries):
    archive = archive_of(tmp_path / "scifact.zip", entries)
    with pytest.raises(InputError, match="leads out of the archive's folder"):
        archives.unpack(archive, "scifact", tmp_path / "scifact")
    assert [p.name for p in tmp_path.iterdir()] == ["scifact.zip"]


def test_an_archive_holds_no_links(tmp_path):
    entries = {"scifact/qrels": "/etc", "scifact/qrels/evil": "x"}
    with pytest.raises(InputError, match="is a link"):
        archives.unpack(archive_of(tmp_path / "a.zip", entries, ["scifact/qrels"]), "scifact", tmp_path / "scifact")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "a.zip", {"scifact/corpus.jsonl": b"0" * 2**25})
    assert archive.stat().st_size < 2**16
    with pytest.raises(InputError, match="33,554,432, which no text does"):
        archives.unpack(archive, "scifact", tmp_path / "scifact")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(InputError, match="has room for 5"):
        archives.unpack(archive_of(tmp_path / "b.zip", {"scifact/x": "0" * 9}), "scifact", tmp_path / "scifact")


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
def test_a_compressed_file_that_no_text_is_so_small_is_not_read(tmp_path, ending):
    bomb = tmp_path / f"corpus.jsonl{ending}"
    if ending == ".zst":
        with pa.CompressedOutputStream(str(bomb), "zstd") as file:
            file.write(b" " * 2**25)
    else:
        bomb.write_bytes({".gz": gzip, ".bz2": bz2}[ending].compress(b" " * 2**25))
    for read in (load_corpus, lambda folder: list(read_query_lists(bomb))):
        with pytest.raises(InputError, match=r"become more than 16,777,216, which no text does"):
            read(tmp_path)


def test_a_torn_archive_or_another_one_is_refused(tmp_path):
    whole = archive_of(tmp_path / "scifact.zip", {"scifact/corpus.jsonl": "{}", "scifact/qrels/test.tsv": ""})
    with pytest.raises(InputError, match="BEIR published 5f7d1de60b170fc8027bb7898e2efca1"):
        archives.download_beir("scifact", tmp_path)
    with pytest.raises(InputError, match="there is no folder 'nq' in it"):
        archives.unpack(whole, "nq", tmp_path / "nq")
    archives.unpack(whole, "scifact", tmp_path / "scifact")
    assert sorted(p.name for p in (tmp_path / "scifact").rglob("*")) == ["corpus.jsonl", "qrels", "test.tsv"]
    torn = tmp_path / "torn.zip"
    torn.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(InputError, match="not a whole zip archive"):
        archives.unpack(torn, "scifact", tmp_path / "torn")
    assert not (tmp_path / "torn").exists() and not list(tmp_path.glob(".scifact.*/"))


def test_a_data_set_is_checked_unpacked_and_found_again(tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "nfcorpus.zip", {"nfcorpus/corpus.jsonl": "{}"})
    monkeypatch.setitem(archives.BEIR, "nfcorpus", hashlib.md5(archive.read_bytes()).hexdigest())
    assert find_dataset("nfcorpus", tmp_path) == tmp_path / "nfcorpus"
    assert archive.exists(), "what lay there before is the user's own"
    assert find_dataset("nfcorpus", tmp_path) == tmp_path / "nfcorpus"


# reports and cards


class Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture
def hostile_comparison(small_run, small_scifact, small_lists, tmp_path):
    """A comparison of a run whose corpus, queries, ids and metadata are full of markup, and its model card."""
    folder = tmp_path / "data" / "small"
    shutil.copytree(small_scifact, folder)
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps(r | {"title": f"{r['title']} {SCRIPT} | [x](javascript:y)"}) + "\n" for r in corpus)
    )
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps(r | {"text": f"{r['text']} {SCRIPT} | ![x](http://x/y.png)"}) + "\n" for r in queries)
    )
    lists = tmp_path / "lists.parquet"
    found = [QueryList(**{**vars(q), "query_type": f"human {SCRIPT}|"}) for q in read_query_lists(small_lists)]
    write_query_lists(lists, found, {"teacher": f"{SCRIPT} | [t](javascript:t)"})
    options = [o for o in small_run if not o.startswith(("evaluation.datasets", "data.train"))]
    options += ["encoder.passage_max_length=128"]  # the markup does not crowd out the text
    options += [f"evaluation.datasets=[{{path: {folder}, name: 'x<script>|'}}]", "trainer.max_epochs=4"]
    options += [f"data.train=[{{path: {lists}, corpus: {folder}}}]", "module.learning_rate=3e-2"]
    run_experiment(config_of(*options), tmp_path / "run")
    write_report(compare([tmp_path / "run"], "last"), tmp_path / "report")
    return tmp_path / "report", (tmp_path / "run" / "model" / "README.md").read_text()


def test_reports_escape_all_text_of_corpora_and_queries(hostile_comparison):
    report, card = hostile_comparison
    page = (report / "comparison.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    found = Elements(page).found
    scripts = [attributes for tag, attributes in found if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "view-data"}, {}], "data, and its own"
    assert all(attributes["src"].startswith("data:image/png") for tag, attributes in found if tag == "img")
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    assert "default-src 'none'" in next(a["content"] for t, a in found if a.get("http-equiv"))
    body = card.partition("\n---\n")[2]  # before it: YAML, which is data
    for text in ((report / "comparison.md").read_text(), (report / "comparison-queries.md").read_text(), body):
        assert "alert(1)" in text or "x\\<script" in text
        assert not re.search(r"(?<!\\)<(script|img)", text), "an element"
        assert not re.search(r"(?<!\\)\]\(javascript", text) and not re.search(r"!\[x\]\(http", text), (
            "a link or an image"
        )
    rows = [re.sub(r"\\\\|\\\|", "", row) for row in card.splitlines() if row.startswith("| ") and "alert" in row]
    assert rows and all(row.count("|") == 8 for row in rows), "pipes of others make no cells"


def test_an_id_alone_is_escaped_too():
    change = Change("<img src=x onerror=y>|[a](b)", "", [], 0.1, 0.2, "")
    template = Path(formats.__file__).with_name("changes.md")
    text = render(template, base="base", changes=[Changes("d", "arm", [change], [])])
    assert r"* 0.100 → 0.200: \<img src=x onerror=y\>\|\[a\](b)" in text.splitlines()
    two = Sheet("x\n\\input{/etc/passwd}", "caption", ("a",), [], [])
    text = render(Path(formats.__file__).with_name("tables.tex"), sheets=[two], unfinished=[], cell=str)
    assert text.splitlines()[-1] == r"% x \input{/etc/passwd}: caption"


STEERING = "\x1b]0;title\x07\x1b[2J\x9b31m\u202edlrow\u2066\x7f\r"
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_texts_of_others_do_not_steer_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ids = [f"d{number}{STEERING}" for number in range(3)]
    rows = [json.dumps({"_id": i, "title": STEERING, "text": f"text {STEERING}"}) for i in ids]
    corpus = tmp_path / "c"
    corpus.mkdir()
    (corpus / "corpus.jsonl").write_text("\n".join(rows))
    lists = [QueryList(STEERING, f"what {STEERING}", f"k{STEERING}", f"c{STEERING}", ids[:1], ids, [3.0, 2.0, 1.0])]
    write_query_lists("lists.parquet", lists, {f"teacher{STEERING}": STEERING})
    list_files.main(["inspect", "lists.parquet", "--corpus", "c"])
    shown = capsys.readouterr().out
    assert shown.count(r"\x1b[2J") > 5 and r"\u202e" in shown and not STEERS.search(shown)
    for arguments in (["inspect", f"no{STEERING}"], ["inspect", "x", f"--{STEERING}"]):
        with pytest.raises(SystemExit):
            list_files.main(arguments)
        error = capsys.readouterr().err
        assert r"\x1b" in error and not STEERS.search(error)
    write_run(tmp_path / "run", f"arm{STEERING}", 1, {f"d{STEERING}": values(1, 5)})
    compare_module.main([str(tmp_path / "run")])
    shown = capsys.readouterr().out
    assert r"arm\x1b]0" in shown and r"d\x1b]0" in shown and not STEERS.search(shown)
    monkeypatch.setattr(sys, "argv", ["run.py", f"modul{STEERING}=x"])
    with pytest.raises(SystemExit):
        run_module.main()
    assert not STEERS.search(capsys.readouterr().err)
    record = logging.LogRecord("x", logging.INFO, "", 0, "read %s", (STEERING,), None)
    for name in ("run", "bench", "prepare/prepare"):
        formatter = OmegaConf.load(CONF / f"{name}.yaml").hydra.job_logging.formatters.simple
        assert not STEERS.search(get_class(formatter["class"])(formatter.format).format(record))
    assert printable("Ελληνικά, العربية, 漢字 🙂\ta\nb") == "Ελληνικά, العربية, 漢字 🙂\ta\nb"


def test_a_spreadsheet_runs_no_formula_of_others(tmp_path):
    formulas = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", " =1"]
    rows = list(csv.reader(io.StringIO(to_csv([[f, f"a{f}", "-0.5", -0.5, "+1e-3", None] for f in formulas]))))
    assert rows == [[f"'{f}", f"a{f}", "-0.5", "-0.5", "+1e-3", ""] for f in formulas]
    words = {"query": '=HYPERLINK("http://x","y")', "relevant": []}
    write_run(tmp_path / "run", "=arm", 1, {"=d": values(1, 5)}, texts={"=d": {"q1": words}})
    write_report(compare([tmp_path / "run"]), tmp_path / "report")
    for path in (tmp_path / "report").glob("*.csv"):
        cells = [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
        assert "'=arm" in cells and not [cell for cell in cells if cell.startswith(("=", "@"))]


# secrets


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("+token=abc", "+token=***"),
        ("++hub.token=abc", "++hub.token=***"),
        ("+hub={token: abc, port: 1}", "+hub={'token': '***', 'port': 1}"),
        ("+hub={token:abc,port:1}", "+hub={'token': '***', 'port': 1}"),
        ("+tokens.token=[abc, def]", "+tokens.token=***"),
        ("+servers=[{password: abc}, {password: def}]", "+servers=[{'password': '***'}, {'password': '***'}]"),
        ("+hub={a: {b: {api_key: abc}}}", "+hub={'a': {'b': {'api_key': '***'}}}"),
        ("+hub={token: abc", "+hub=***"),
        ("hydra.job.env_set.HF_TOKEN=abc", "hydra.job.env_set.HF_TOKEN=***"),
        ("+hub={token: abc},{token: 'def'}", "+hub={'token': '***'},{'token': '***'}"),
        ("+hub=shuffle([{token: abc}])", "+hub=[{'token': '***'}]"),
        ("+hub.url=http://a:b@host/x?q=1&api_key=abc&z=2", "+hub.url=http://***@host/x?q=1&api_key=***&z=2"),
        (
            "+hub.url=http://x/y?X-Amz-Signature=abc&sig=d#access_token=e",
            "+hub.url=http://x/y?X-Amz-Signature=***&sig=***#access_token=***",
        ),
        ('+hub=\'{"token": "abc"}\'', '+hub={"token": "***"}'),
        ("+hub={headers:[a=b,'Bearer abc==']}", "+hub=***"),
        ("data.train=[{path: a/lr=3/b, corpus: c, token: abc}]", "data.train=***"),
        ("data.train=[{path: a, corpus: b}],+hub.token=abc", "data.train=***"),
        *(
            (ordinary, ordinary)
            for ordinary in (
                "data.train=[{path: a, corpus: b}]",
                "data.train=[{path: a/lr=3/b.parquet, corpus: c}]",
                "data.train=[{path: 'a/lr=3/b.parquet', corpus: c}],[{path: d}]",
                "data.train=[{path: a, corpus: b}],seed=1",
                "encoder.model=runs/lr=3,seed=1/model",
                "data.data_dir=${data_dir}/lr=3",
                "outputs/seed=[12]",
            )
        ),
    ],
)
def test_secrets_of_a_command_line_are_hidden_wherever_they_are(given, shown):
    assert redact_arguments([given]) == [shown]
    assert given != shown or _redact_overrides(given) == shown, given


def test_no_file_of_a_run_or_a_sweep_holds_a_secret(small_run, tmp_path, monkeypatch):
    options = [o for o in small_run if not o.startswith("name=")] + ["trainer.max_steps=1", "export=false"]
    hidden = ["hub.token=hunter2hunter2", "hub2={password: swordfish}", "hub3.token=[sesame1, sesame2]"]
    secrets = [f"+logger.{each}" for each in hidden]
    for line in ([f"hydra.run.dir={tmp_path}/run"], ["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]):
        monkeypatch.setattr(sys, "argv", ["run.py", *line, *options, *secrets])
        run_module.main()
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml").is_file() and (tmp_path / "sweep").is_dir()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    leaks = [p for p in files for s in ("hunter2", "swordfish", "sesame") if s.encode() in p.read_bytes()]
    assert len(files) > 50 and not leaks
    overrides = OmegaConf.load(tmp_path / "run" / ".hydra" / "overrides.yaml")
    assert "+logger.hub.token=***" in overrides and "trainer.max_steps=1" in overrides
