"""experiments.push: what is written, what is sent, and that nothing is without being asked for."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from omegaconf import OmegaConf

from datamodules.query_lists.files import read_metadata, read_query_lists, write_query_lists
from experiments.push import main, write_lists
from experiments.training.train import run_experiment
from helpers.hub import TOKEN, hub_on_loopback
from helpers.runs import config_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, small_scifact, small_lists):
    """A finished run."""
    folder = tmp_path_factory.mktemp("pushed") / "run"
    options = [f"encoder.model={tiny_model}", "data.leak_guard=off", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    options += [f"data.{part}=[{{path: {small_lists}, corpus: {small_scifact}}}]" for part in ("train", "dev")]
    options += [f"evaluation.datasets=[{{path: {small_scifact}}}]", "logger=csv", "name=small"]
    run_experiment(config_of(*options), folder)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pushed(run, *options, address="http://127.0.0.1:1", token=TOKEN):
    line = [sys.executable, "-m", "experiments.push", str(run), "--repo", "me/small", *options]
    variables = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment = os.environ | variables | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def test_a_dry_run_writes_the_folders_and_sends_nothing(run, tmp_path, small_lists, capsys):
    before = contents(run)
    main([str(run), "--repo", "me/small", "--dry-run", str(tmp_path / "out"), "--lists"])
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / part) for part in ("model", "dataset")]
    assert contents(run) == before
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert 'SentenceTransformer("me/small")' in card and "PATH" not in card and "paired 95% interval" in card
    found = load_dataset(str(tmp_path / "out" / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert found.keys() == {"train", "dev"} and {"query", "passage_ids", "teacher_scores"} <= set(found["train"][0])
    written = tmp_path / "out" / "dataset" / "train-00.parquet"
    assert read_metadata(written).keys() <= read_metadata(small_lists).keys()
    for name, content in contents(tmp_path / "out").items():  # no place of this machine
        assert str(run.parents[1]).encode() not in content, name


def test_names_in_the_card_of_lists_are_no_markup(small_lists, tmp_path):
    hostile = "a | b\n# c: [d](http://e) <i>"
    lists = [replace(one, query_type=hostile) for one in read_query_lists(small_lists)]
    about = {"corpus": "x", "teacher": {"one": {"name": hostile, "kind": "k"}}}
    write_query_lists(tmp_path / "l.parquet", lists, about)
    settings = {"train": [{"path": str(tmp_path / "l.parquet"), "corpus": "some/a|b"}], "dev": None}
    OmegaConf.save({"data": settings}, tmp_path / "config.yaml")
    write_lists(tmp_path, tmp_path / "out")
    card = DatasetCard((tmp_path / "out" / "README.md").read_text())
    [part] = card.data.configs[0]["data_files"]
    assert part == {"split": "train", "path": ["train-00.parquet"]} and "query-lists" in card.data.tags
    plain = r"a \| b # c: \[d\](http://e) \<i\>"
    row = rf"| train-00.parquet | {len(lists)} | {plain} {len(lists)} | a\|b | {plain} |"
    assert card.text.splitlines()[-1] == row, card.text


def test_what_is_sent_is_what_a_dry_run_writes(run, tmp_path):
    main([str(run), "--repo", "me/small", "--dry-run", str(tmp_path / "out"), "--lists"])
    with hub_on_loopback() as hub:
        ended = pushed(run, "--send", "--lists", "--private", address=hub.address)
        assert ended.returncode == 0, ended.stderr
        assert hub.repositories == {"models/me/small": True, "datasets/me/small-lists": True}
        for name, folder in (("models/me/small", "model"), ("datasets/me/small-lists", "dataset")):
            sent = {path: content for path, content in hub.files[name].items() if path != ".gitattributes"}
            assert sent == contents(tmp_path / "out" / folder)
    assert not list(run.glob(".push*"))


@pytest.mark.parametrize("options", [(), ("--send", "--dry-run", "x")])
def test_sending_must_be_asked_for(run, options):
    with hub_on_loopback() as hub:
        assert pushed(run, *options, address=hub.address).returncode == 2
        assert not hub.repositories


def test_who_may_not_write_and_a_hub_out_of_reach_are_one_sentence(run):
    with hub_on_loopback() as hub:
        refused = pushed(run, "--send", address=hub.address, token="hf_wrong")
        assert not hub.repositories
    for ended in (refused, pushed(run, "--send")):
        assert ended.returncode == 1 and "Log in by `hf auth login`" in ended.stderr, ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "name, said", [("small", "expected OWNER/NAME"), ("a/b/c", "--repo is"), ("a/b c", "--repo is")]
)
def test_wrong_names_are_refused(run, tmp_path, name, said):
    with pytest.raises(SystemExit, match=said):
        main([str(run), "--repo", name, "--dry-run", str(tmp_path / "out")])


def test_a_debug_run_is_not_shared(run, tmp_path):
    shutil.copytree(run, tmp_path / "debug")
    config = OmegaConf.load(run / "config.yaml")
    config.debug = {"lists": 8, "queries": 8}
    OmegaConf.save(config, tmp_path / "debug" / "config.yaml")
    with pytest.raises(SystemExit, match="figures are of a few passages"):
        main([str(tmp_path / "debug"), "--repo", "me/small", "--dry-run", str(tmp_path / "out")])


def test_what_is_no_run_and_a_folder_that_is_there_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    for name in ("file", "begun/config.yaml"):
        (tmp_path / name).touch()
    own = r"Name a run's own folder, in which config\.yaml is\.$"
    for none, words in {
        tmp_path / "gone": rf"There is no such folder\. {own}",
        tmp_path / "file": rf"It is a file\. {own}",
        tmp_path / "empty": rf"It is no run's folder\. {own}",
        run / "model": rf"It is a part of the run .*run\. {own}",
        run.parent: rf"It holds 1 run\(s\), such as .*run\. {own}",
        tmp_path / "begun": "It has no whole .* this run is not finished. The command that began it .*: resume=",
    }.items():
        with pytest.raises(SystemExit, match=f"no finished run with an exported model. {words}"):
            main([str(none), "--repo", "me/small", "--dry-run", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="is there already"):
        main([str(run), "--repo", "me/small", "--dry-run", str(tmp_path)])
    assert json.loads((run / "results.json").read_text())["name"] == "small"
