"""One run over several processes, by every launcher that starts them, and sweeps whose runs are processes."""

from __future__ import annotations

import importlib.util
import json
import time

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.training.train import _slurm, run_experiment
from helpers.processes import finish, free_port, start
from helpers.runs import CONF, config_of, weights

LAUNCHERS = sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml"))


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one_however_they_are_started(small_run, tmp_path):
    options = [*small_run, "encoder.dropout=0", "trainer.precision=32-true", "export=false"]
    folder = tmp_path / "one"
    record = run_experiment(config_of(*options), folder)
    one, figure = weights(folder), record["datasets"]["small"]["ndcg@10"]
    folder = tmp_path / "lightning"
    finish(folder, start(folder, *options, "trainer.devices=2", f"hydra.run.dir={folder}"))
    of_two = json.loads((folder / "results.json").read_text())
    two, figures = weights(folder), of_two["datasets"]
    # each query once an epoch; but passages that both ranks need are encoded by both
    for found in (record, of_two):
        assert found["texts_encoded"] - found["passages_encoded"] == 2 * found["data"]["train_lists"]
    assert record["passages_encoded"] < of_two["passages_encoded"] < 2 * record["passages_encoded"]
    assert record["tokens_encoded"] < of_two["tokens_encoded"]
    # Adam divides by the root of the squared gradient: where that is nearly 0, rounding moves a weight by up to lr
    close = torch.cat([((one[key] - two[key]).abs() < 1e-4).float().flatten() for key in one])
    assert close.mean() > 0.999
    assert figures["small"]["ndcg@10"]["base"] == figure["base"]
    assert figures["small"]["ndcg@10"]["last"] == pytest.approx(figure["last"], abs=0.03)

    def two_nodes(folder, rank):
        torchrun = ["--nnodes=2", f"--node_rank={rank}", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_backend=c10d"]
        torchrun += ["--rdzv_id=test", "-m", "experiments.run"]
        return start(folder, *torchrun, *named, "trainer.num_nodes=2", module="torch.distributed.run")

    def slurm_tasks(folder, rank):
        variables = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
        variables |= {"JOB_ID": port - 15000, "JOB_NAME": "train", "NODELIST": "127.0.0.1"}
        environment = {f"SLURM_{name}": str(value) for name, value in variables.items()}
        return start(folder, *named, "trainer.devices=2", MASTER_PORT=str(port), **environment)

    for launch in (two_nodes, slurm_tasks):
        folder = tmp_path / launch.__name__
        named = [*options, f"hydra.run.dir={folder}/${{now:%S}}"]
        port = free_port()
        first = launch(folder, 0)
        time.sleep(1.1)  # the ranks would name their folders differently
        finish(folder, first, launch(folder, 1))
        [run] = folder.iterdir()
        assert json.loads((run / "results.json").read_text())["datasets"] == figures
        torch.testing.assert_close(weights(run), two, rtol=0, atol=0)
        assert not list(run.glob("metrics-part*"))  # one rank kept the record


@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="the extra 'cluster'")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_composes(name):
    options = ["trainer=gpu", "trainer.devices=4", "trainer.num_nodes=2", f"hydra/launcher={name}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        launcher = compose("run", options, return_hydra_config=True).hydra.launcher
    assert launcher._target_.startswith("hydra_plugins.")
    if name == "slurm_gpu":
        assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="the extra 'cluster'")
def test_sweep_on_other_processes_ends_with_the_table(small_run, tmp_path):
    options = ["trainer.max_epochs=1", "seed=1,2", "export=false", f"hydra.sweep.dir={tmp_path}/sweep"]
    finish(tmp_path / "sweep", start(tmp_path / "sweep", "-m", *small_run, *options, "hydra/launcher=local_processes"))
    assert "| small | 1, 2 |" in (tmp_path / "sweep" / "comparison.md").read_text()


def test_lightning_does_not_requeue_beside_slurm(monkeypatch):
    """Its own checkpoint would be loaded where the base model is to be measured."""
    assert _slurm() == []
    for name in ("NTASKS", "JOB_ID", "PROCID", "LOCALID", "NODEID", "JOB_NAME"):
        monkeypatch.setenv(f"SLURM_{name}", "train" if name == "JOB_NAME" else "1")
    assert [environment.auto_requeue for environment in _slurm()] == [False]
