"""What a run says before it begins: facts, a dozen lines, and an estimate that changes nothing."""

import json
import time

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from callbacks.reliability.last_validation import ValidateLastStep
from experiments.plan.plan import plan_lines, run_plan
from experiments.plan.steps import Steps
from experiments.training.train import run_experiment
from helpers.runs import config_of


def opened(config, folder):
    """Trainer, module, data and evaluation of a run that has not begun."""
    encoder = instantiate(config.encoder)
    module = instantiate(config.module, encoder=encoder)
    data, evaluation = instantiate(config.data, encoder=encoder), instantiate(config.evaluation, folder=folder)
    data.open()
    evaluation.open(module, data)
    trainer = instantiate(config.trainer, precision="32-true", default_root_dir=str(folder), logger=False)
    return trainer, module, data, evaluation


@pytest.mark.slow
def test_a_run_says_what_it_runs_before_it_encodes(small_run, small_scifact, tiny_model, tmp_path, capsys):
    folder = tmp_path / "run"
    config = config_of(
        "module=combined", *small_run, "encoder.query_prompt='find: '", "early_stopping.patience=5", "export=false"
    )
    results = run_experiment(config, folder)
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line]
    block = lines[: next(i for i, line in enumerate(lines) if line.startswith("time ")) + 1]
    assert 11 <= len(block) <= 16 and max(map(len, block)) <= 110
    plan = json.loads((folder / "environment.json").read_text())["plan"]
    assert [line.split()[0] for line in block if not line.startswith(" ")] == list(plan_lines(plan))
    text = " ".join(" ".join(block).split())
    for fact in (
        f"folder {tiny_model}: BertModel, 2 layers of width 32",
        "pooling mean, 32 dimensions",
        "64 tokens of a query, 64 of a passage; prompts 'find: ' and ''",
        "queries and passages;",
        "100%",
        "CombinedObjective: distillation_weight 1.0, infonce_weight 0.1, temperature 0.05, teacher_temperature 0.3, "
        "infonce_temperature 0.01, positive teacher, false_negative_threshold 0.6",
        f"{results['data']['train_lists']} lists (human) of human.parquet; 8 of 4 to 8 candidates used",
        f"{results['data']['dev_lists']} lists (human) of human.parquet",
        "small (120 passages)",
        "small (20 queries of test)",
        "32-true (auto: no bfloat16 in this processor; else trainer.precision=bf16-mixed), 1 rank; micro-batches of "
        "4,096 tokens",
        "8 steps of 8 lists, 4 an epoch; lr 0.001, warm-up 2, down to 0.0001; weight decay 0.01, clip 1",
        "at most 2; keeps the lowest dev/loss; stops after 5 without a better dev/kl or dev/loss",
        "encoding 120 passages",
        "3 evaluations",
    ):
        assert fact in text, fact
    assert plan["model"]["parameters"] == sum(p.numel() for p in instantiate(config.encoder).parameters())
    assert plan["steps"]["total"] == results["optimiser_steps"] and 0 < plan["time"]["from"] < plan["time"]["to"]
    again = run_plan(config, *opened(config, folder), folder / "checkpoints" / "last.ckpt")  # of a run that is resumed
    assert again["steps"]["done"] == 8 and again["time"]["encoding"] == again["time"]["steps"] == 0
    assert "8 steps, 8 of them done" in plan_lines(again)["steps"]


def test_the_estimate_draws_no_random_number_and_leaves_the_module_as_it_is(small_run, tmp_path):
    config = config_of("module=distillation", *small_run, "encoder.dropout=0.1", "module.train_passage_encoder=false")
    parts = opened(config, tmp_path)
    before = [torch.get_rng_state(), *(p.clone() for p in parts[1].parameters())]
    numbers = np.random.get_state()[1].copy()
    plan = run_plan(config, *parts, None)
    after = [torch.get_rng_state(), *parts[1].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (numbers == np.random.get_state()[1]).all()
    assert parts[1].encoder.training and all(p.grad is None for p in parts[1].parameters())
    assert (
        plan["trained"]["side"].startswith("queries alone (index-preserving: passages keep")
        and plan["time"]["passages"] == 120
    )


@pytest.mark.slow
def test_embeddings_of_stored_states_are_found_and_no_share_of_a_search_is_left_out(small_run, tmp_path, monkeypatch):
    def plan():
        trainer, module, data, evaluation = opened(config, tmp_path)
        return run_plan(config, trainer, module, data, evaluation, None)["time"]

    config = config_of("module=distillation", *small_run, "encoder.trainable_layers=1")
    assert plan()["passages"] == 120
    trainer, module, _, evaluation = opened(config, tmp_path)
    evaluation.ranker.check(module)
    evaluation.ranker.prepare(evaluation.history.sets, module.encoder, evaluation.how.on(trainer))
    assert plan()["passages"] == 0
    monkeypatch.setattr("experiments.plan.time._Meter._of", lambda *_: (1.0, 1.0))
    half, products = plan(), 3 * 20 * 120
    config = config_of("module=distillation", *small_run)
    whole = plan()
    assert half["evaluations"] - products == (whole["evaluations"] - products) / 2 > 0
    assert half["steps"] == whole["steps"] / 2


@pytest.mark.slow
def test_tokens_that_are_kept_are_all_of_a_step_where_it_has_no_more(small_run, tmp_path):
    config = config_of("module=distillation", *small_run)
    plan = run_plan(config, *opened(config, tmp_path), None)
    tokens = plan["time"]["tokens"]
    assert 8 * 20 < tokens < 8 * 9 * 64
    for kept, ranks, said in ((tokens, 1, "all"), (tokens / 2, 2, "all"), (1234, 1, "up to 1,234")):
        plan["device"] |= {"uncheckpointed_tokens": kept, "ranks": ranks}
        assert f"tokens, {said} of a step kept" in plan_lines(plan)["device"]
    plan["time"] = {"unknown": "compiled"}
    plan["device"]["uncheckpointed_tokens"] = 10**6
    assert "tokens, up to 1,000,000 of a step kept" in plan_lines(plan)["device"]


COMPARED = {
    "distillation": "8 of 4 to 8 candidates used",
    "distillation_corpus": "8 of 4 to 8 candidates used, and each query compared with all candidates of its batch",
    "infonce_corpus module.train_passage_encoder=false": "8 of 4 to 8 candidates used, and each query compared with "
    "its whole corpus (where that has more passages, with 20,000 of them)",
}


@pytest.mark.slow
@pytest.mark.parametrize("module", COMPARED)
def test_what_queries_are_compared_with_is_said(small_run, tmp_path, module):
    config = config_of(f"module={module.split()[0]}", *module.split()[1:], *small_run)
    line = plan_lines(run_plan(config, *opened(config, tmp_path), None))["train"]
    assert line.endswith(f"human.parquet; {COMPARED[module]}"), line


@pytest.mark.slow
def test_a_term_of_any_objective_is_said_where_it_counts(small_run, tmp_path):
    for weight, shown in ((0.5, 0.5), (0.0, None)):
        config = config_of("module=distillation", f"module.orthogonal_weight={weight}", *small_run)
        settings = run_plan(config, *opened(config, tmp_path / str(weight)), None)["objective"]["settings"]
        assert settings.get("orthogonal_weight") == shown


def test_many_names_and_hostile_ones_stay_short(small_run, tmp_path):
    config = config_of("module=distillation", *small_run)
    plan = run_plan(config, *opened(config, tmp_path), None)
    plan["model"]["query_prompt"] = "Instruct: find\nQuery: \x1b[2J"
    plan["evaluation"] = plan["evaluation"] * 40
    lines = plan_lines(plan)
    assert r"'Instruct: find\nQuery: \x1b[2J'" in lines["texts"] and lines["evaluation"].endswith("and 37 more")


def test_one_of_a_thing_is_said_in_the_singular(small_run, tmp_path):
    plan = run_plan(config_of("module=distillation", *small_run), *opened(config_of(*small_run), tmp_path), None)
    plan["lists"] = [part | {"lists": 1, "candidates": [1, 1, 1]} for part in plan["lists"]]
    plan["corpora"], plan["evaluation"] = {"small": 1}, [facts | {"queries": 1} for facts in plan["evaluation"]]
    plan["device"] |= {"name": "cpu", "threads": 1, "ranks": 1}
    plan["steps"] |= {"total": 1, "lists": 1}
    plan["time"] |= {"passages": 1, "number": 1}
    lines = plan_lines(plan)
    text = " ".join(lines.values())
    for fact in (
        "1 list (human) of human.parquet; 1 of 1 candidate used",
        "small (1 passage)",
        "small (1 query of test)",
        "cpu (1 thread)",
        "1 rank;",
        "1 step of 1 list,",
        "encoding 1 passage ",
        "1 evaluation ",
    ):
        assert fact in text, (fact, lines)
    plan["device"]["threads"] = plan["device"]["ranks"] = 2
    assert "cpu (2 threads)" in plan_lines(plan)["device"] and "2 ranks" in plan_lines(plan)["device"]


def test_a_busy_machine_is_named_beside_the_time(small_run, tmp_path, monkeypatch):
    config = config_of("module=distillation", *small_run, "trainer.accelerator=cpu")
    said = {}
    for share in (0.3, 1.7):
        monkeypatch.setattr("time.process_time", lambda share=share: share * time.perf_counter())
        said[share] = plan_lines(run_plan(config, *opened(config, tmp_path / str(share)), None))["time"]
    assert said[0.3].endswith(
        "; other programs are using this machine (the measurement got 30% of a core): expect less once it is quiet"
    )
    assert "other programs" not in said[1.7]


def test_what_makes_a_long_run_shorter_is_said_where_it_has_effect(small_run, tmp_path):
    config = config_of("module=distillation", *small_run)
    plan = run_plan(config, *opened(config, tmp_path), None)
    plan["device"]["name"] = "cpu"
    plan["steps"] |= {"total": 300, "done": 0}
    assert "shorter" not in plan_lines(plan), "a run of seconds"
    plan["time"]["to"] = 4000.0
    ways = plan_lines(plan)["shorter"]
    settings = ("module.train_passage_encoder=false", "trainer.max_steps=100")
    assert all(f"{setting} " in ways for setting in settings) and "adapt" in ways
    config = config_of("module=distillation", *small_run, *settings)
    shorter = run_plan(config, *opened(config, tmp_path), None)
    assert shorter["trained"]["passages"] is False
    for change in ({"done": 200}, {"total": 100}):
        plan["trained"], plan["steps"] = shorter["trained"], plan["steps"] | {"total": 300, "done": 0} | change
        assert plan_lines(plan)["shorter"].startswith("python -m experiments.adapt")
    plan["trained"]["passages"] = None
    assert "shorter" not in plan_lines(plan), "nothing makes a re-ranker's shorter but fewer steps"
    plan["steps"]["total"], plan["device"]["name"] = None, "NVIDIA H200"
    assert "shorter" not in plan_lines(plan)
    plan["device"]["name"] = "cpu"
    assert plan_lines(plan)["shorter"] == "trainer.max_steps=100 takes fewer steps"


def test_a_cross_encoder_says_what_it_runs(small_run, tiny_model, tmp_path, capsys):
    small = [o for o in small_run if not o.startswith("encoder.")]
    config = config_of(
        "encoder=cross",
        f"encoder.model={tiny_model}",
        "encoder.passage_max_length=40",
        "encoder.pair_max_length=100",
        "module=reranker",
        "evaluation=rerank",
        "evaluation.dense=null",
        *small,
    )
    plan = run_plan(config, *opened(config, tmp_path), None)
    lines = plan_lines(plan)
    assert "40 of a passage; 100 of a pair" in lines["texts"] and "prompts" not in lines["texts"]
    assert lines["trained"].startswith("pairs of query and passage;") and plan["model"]["dimension"] is None
    assert plan["trained"]["passages"] is None
    assert plan["time"]["number"] == 4 and plan["time"]["passages"] == 0 and plan["time"]["steps"] > 0


CASES = [
    {"max_epochs": 3},
    {"max_epochs": 2, "val_check_interval": 0.5},
    {"max_epochs": 4, "check_val_every_n_epoch": 2},
    {"max_epochs": -1, "max_steps": 7, "val_check_interval": 3},
    {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
    {"max_epochs": 2, "accumulate_grad_batches": 2, "limit_train_batches": 3},
    {"max_epochs": 3, "check_val_every_n_epoch": 2},
    {"max_epochs": 2, "val_check_interval": 3},
    {"max_epochs": 3, "max_steps": 7, "accumulate_grad_batches": 2, "val_check_interval": 1},
    {"max_epochs": 9, "max_steps": 2},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_steps_and_validations_are_those_that_lightning_makes(options):
    import lightning as L
    from torch.utils.data import DataLoader

    class Counting(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.validated = []

        def training_step(self, batch, _):
            return (self.weight * batch.float()).sum()

        def validation_step(self, batch, _):
            self.validated.append(self.global_step)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = L.Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_model_summary=False,
        callbacks=[ValidateLastStep()],
        **quiet,
        **{"max_steps": -1} | options,
    )
    steps, module = Steps.of(trainer, 5), Counting()
    trainer.fit(module, DataLoader(range(5)), DataLoader(range(1)))
    assert (steps.total, steps.validations) == (trainer.global_step, len(module.validated))
    assert module.validated[-1] == trainer.global_step
