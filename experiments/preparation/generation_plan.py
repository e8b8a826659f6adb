"""What a plan says of stage generate: prompts, tokens and cost, before any is paid for."""

from pathlib import Path

from datamodules.pipeline.engines import Engine
from datamodules.pipeline.stages.generate import Generate
from datamodules.pipeline.stages.stage import find_output, stage_folder


def plan_lines(stage: Generate, work: Path) -> dict[str, str]:
    """Subject → what is said of it.

    Args:
        stage: its settings and inputs.
        work: folder of the pipeline.
    """
    engine, found = stage.engine, stage.estimate()
    prompts, tokens, longest = found["prompts"], found["prompt_tokens"], found["answer_tokens"]
    answers = f"at most {longest:,} of answers" if longest else "no maximum of answers (generator.sampling.max_tokens)"
    lines = {
        "prompts": f"{prompts:,}: {len(stage.types)} query types for {found['passages']:,} passages",
        "tokens": f"{tokens:,} of prompts, {engine.prompt_tokens.way}; {answers}",
        "cost": _cost(engine, tokens, longest),
    }
    if stage.attempts > 1:
        lines["attempts"] = f"rejected answers are asked for up to {stage.attempts - 1} times more, which is not in it"
    folder = stage_folder(stage, work)
    if (folder / "answers").is_dir():
        engine.open(folder / "answers")
        used = engine.usage()
        lines["so far"] = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in used.items()) or "nothing"
    if find_output(stage, work):
        lines["left"] = f"nothing: these queries are written ({folder})"
    return lines


def _cost(engine: Engine, prompt_tokens: int, answer_tokens: int | None) -> str:
    if engine.price is None:
        return "not known: generator.price is null"
    if answer_tokens is None:
        return f"{engine.price.of(prompt_tokens, 0):,.2f} for prompts alone"
    return f"at most about {engine.price.of(prompt_tokens, answer_tokens):,.2f}, in the currency of generator.price"
