"""The engines on a tiny random chat model; real vLLM answers in tests/integration/test_vllm.py."""

import json
import shutil

import pytest

from datamodules.pipeline.engines import ServerEngine, TransformersEngine, VllmEngine, choose_engine
from datamodules.pipeline.engines.engine import model_identity
from helpers.chat_server import chat, serving
from helpers.conversations import CONVERSATIONS, SAMPLING, answers
from retriever.errors import InputError


@pytest.mark.slow
def test_transformers_answers_alike_whatever_came_before(tiny_chat_model):
    engine = TransformersEngine(str(tiny_chat_model), SAMPLING, batch_size=5)
    first = answers(engine)
    answers(engine, CONVERSATIONS[:3])
    assert answers(engine) == first == answers(TransformersEngine(str(tiny_chat_model), SAMPLING, batch_size=5))
    assert len({text for text, _ in first}) > 6
    assert answers(engine, seeds=list(range(1, 13))) != first


@pytest.mark.slow
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


def test_a_server_is_asked_with_sampling_seeds_and_template():
    asked = []

    def answer(path, request):
        asked.append((path, request))
        return (200, chat("yes")) if len(asked) < 3 else (200, {"choices": []})

    with serving(answer) as url:
        options = {"chat_template": {"enable_thinking": False}, "base_url": f"{url}/v1/", "parallel": 1}
        engine = ServerEngine("tiny", {"temperature": 0.5}, **options)
        assert answers(engine, CONVERSATIONS[:2], [7, 8]) == [("yes", True)] * 2
        with pytest.raises(InputError, match=r"expected a chat completion\. .* does it serve 'tiny'"):
            answers(engine, CONVERSATIONS[:1], [9])
    assert [path for path, _ in asked] == ["/v1/chat/completions"] * 3
    same = {"model": "tiny", "temperature": 0.5, "chat_template_kwargs": {"enable_thinking": False}}
    assert asked[1][1] == same | {"messages": CONVERSATIONS[1], "seed": 8}
