"""Options on the command line and keywords in Python: the same names, the same defaults, and each has its effect."""

from __future__ import annotations

import inspect
import math
from typing import Any
from unittest import mock

import click
import numpy as np
import pytest

import pipeline
from pipeline.cli import cli
from pipeline.core.callbacks import Callbacks
from pipeline.errors import OptionError, PipelineError
from pipeline.stages.option_types import Cosine, RateOrAuto
from tests.cli.run import run_command

CALLS: dict[str, tuple[Any, list[str]]] = {
    "extract": (pipeline.extract, ["images", "-o", "cache"]),
    "scout": (pipeline.scout, ["images", "-o", "output"]),
    "fit-head": (pipeline.fit_head, ["cache", "-o", "run"]),
    "predict": (pipeline.predict, ["run", "images", "-o", "output"]),
    "finetune": (pipeline.finetune, ["cache", "run", "-o", "output"]),
}
OF_CALLS_ALONE = ["verbose", "callbacks"]


def keywords(call: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(call).parameters
    return {name: found[name] for name in found if found[name].kind is inspect.Parameter.KEYWORD_ONLY}


def received(name: str, call: Any, **options: Any) -> tuple[Any, ...]:
    """Return what a call hands to its stage, for some options."""
    module = f"pipeline.stages.{name.replace('-', '_')}"
    with (
        mock.patch(f"{module}.{name.replace('-', '_')}") as stage,
        mock.patch(f"{module}.fit_heads", create=True) as several,
    ):
        several.side_effect = lambda cache, run, targets, *settings, **callbacks: [mock.Mock() for _ in targets]
        places = [text for text in CALLS[name][1] if text != "-o"]
        call(*places, callbacks=Callbacks(), **options)
    asked = (stage if stage.called else several).call_args
    return (*asked.args, {key: value for key, value in asked.kwargs.items() if key not in ("progress", "stop")})


@pytest.mark.parametrize("name", CALLS)
def test_every_option_is_a_keyword_of_the_same_name(name: str) -> None:
    options = [
        option.opts[0]
        for option in cli.commands[name].params
        if isinstance(option, click.Option) and "--output" not in option.opts
    ]
    named = [text.removeprefix("--").removeprefix("no-").replace("-", "_") for text in options]
    assert [*OF_CALLS_ALONE, *named] == list(keywords(CALLS[name][0]))


@pytest.mark.parametrize("name", CALLS)
def test_the_defaults_are_those_of_the_command(name: str) -> None:
    call, arguments = CALLS[name]
    with mock.patch(f"pipeline.stages.calls.{call.__name__}", side_effect=PipelineError("seen")) as called:
        assert run_command(name, *arguments).stderr.endswith("error: seen\n")
    passed = {key: value for key, value in called.call_args.kwargs.items() if key != "callbacks"}
    defaults = {key: value.default for key, value in keywords(call).items() if key not in OF_CALLS_ALONE}
    assert passed == defaults
    assert {key: type(value) for key, value in passed.items()} == {key: type(value) for key, value in defaults.items()}


OTHER_VALUES: dict[str, dict[str, Any]] = {
    "extract": {
        "backbone": "b", "weights": "w", "layer": "blocks.3", "size": 96, "views": "flip", "dtype": "float16",
        "max_pixels": 5, "decode": "gpu", "labels": "t.csv", "allow_missing": True, "check_content": True,
        "retry_failed": True, "retries": 2, "read_timeout": 7.5,
        "max_failures": "5%", "allow_removed": "5%", "shard": "2/3", "precision": "float32", "engine": "torch",
        "device": "cpu", "batch_size": 3, "workers": 2, "time_limit": 1.5,
        "trust_remote_code": True,
    },
    "scout": {
        "backbones": "a,b", "set": "clip", "layers": ["x"], "rows": 30, "minutes": 2, "labels": "t.csv", "folds": 3,
        "seed": 1, "report": False, "precision": "float32", "engine": "torch", "device": "cpu", "batch_size": 3,
        "workers": 2, "time_limit": 1.5, "trust_remote_code": True,
    },
    "fit-head": {
        "head": "ridge", "estimator": "a:B", "set": {"k": 3}, "layer": "l", "layers": "a,b", "labels": "t.csv",
        "features": "age,site",
        "target": "t", "task": "regression", "sweep": "full", "C": [0.5], "folds": 3, "scoring": "log_loss",
        "scaling": "standard", "balanced": True, "group_duplicates": 0.9, "shots": 4, "test_share": 0.5, "seed": 1,
        "device": "cpu", "report": False, "prompts": "p.csv", "start": "zero-shot", "weights": "w",
        "trust_remote_code": True, "groups": "g", "per": "p", "pooling": "max", "views": False,
    },
    "predict": {
        "weights": "w", "trust": True, "per": "p", "explain": "why", "abstain_novelty": 99.0,
        "abstain_confidence": 0.5,
        "coverage": 0.9, "coverage_by_class": True, "precision": "float32", "engine": "torch", "device": "cpu",
        "batch_size": 3, "workers": 2, "time_limit": 1.5, "trust_remote_code": True,
    },
    "finetune": {
        "schedule": "gradual", "epochs": 1, "lr": "auto", "layer_decay": 0.5, "weight_decay": 0.5, "optimizer": "sgd",
        "warmup": 0.5, "batch_size": 3, "micro_batch": 2, "label_smoothing": 0.5, "mixup": 0.5, "augment": "none",
        "balanced": True, "clip": 2.0, "ema": 0.5, "patience": 1, "start": "random",
        "mix": 0.5, "seed": 1, "precision": "float32", "device": "cpu", "workers": 2, "weights": "w", "restart": True,
        "report": False, "trust_remote_code": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_keyword_reaches_the_stage(name: str) -> None:
    call, values = CALLS[name][0], OTHER_VALUES[name]
    # Ray's executor is made from these two: tests/embedding/test_ray.py.
    assert {*values, *OF_CALLS_ALONE} == keywords(call).keys() - {"ray", "ray_actors"}
    usual = received(name, call)
    for keyword, value in values.items():
        assert received(name, call, **{keyword: value}) != usual, keyword
        assert received(name, call, **{keyword: None}) == usual, f"{keyword}: None is the default"


def test_values_that_python_writes_otherwise() -> None:
    def settings(**options: Any) -> Any:
        return received("fit-head", pipeline.fit_head, **options)[2]

    assert settings(set={"n": 3, "metric": "cosine"}).params == {"n": 3, "metric": "cosine"}
    assert settings(set="n=3").params == {"n": 3}
    assert settings(C=np.array([0.5, 2.0])).Cs == (0.5, 2.0)
    assert settings(C=3).Cs == (3.0,)
    assert settings(shots="1,2").shots == settings(shots=[1, np.int64(2)]).shots == (1, 2)
    assert settings(group_duplicates=True).group_duplicates == 0.98
    assert settings(group_duplicates=False).group_duplicates is None
    assert settings(folds=3.0).folds == 3
    assert received("fit-head", pipeline.fit_head, target=["a", "b"])[2] == ("a", "b")
    assert received("extract", pipeline.extract, shard="2/3")[2].shard.number == 2


def test_the_address_of_a_ray_cluster() -> None:
    for value, address in ((True, None), ("ray://there", "ray://there")):
        with mock.patch("pipeline.stages.calls.RayExecutor") as executor:
            received("extract", pipeline.extract, ray=value, ray_actors=2)
        assert executor.call_args == mock.call(address, actors=2)
    assert received("extract", pipeline.extract, ray=False)[-1]["executor"] is None


def test_a_keyword_that_is_none_is_refused_with_the_names_of_those_that_are() -> None:
    for name, (call, _) in CALLS.items():
        with pytest.raises(OptionError) as caught:
            call("a", "b", "c", bachbone="x")
        text = str(caught.value)
        assert "\n" not in text
        assert text.startswith(f"{call.__name__}() has no keyword 'bachbone'")
        assert all(keyword in text for keyword in OTHER_VALUES[name])
    with pytest.raises(OptionError, match="did you mean backbone"):
        pipeline.extract("a", "b", bachbone="x")
    with pytest.raises(TypeError, match="It takes head"):
        pipeline.fit_head("a", "b", no_report=True)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (pipeline.extract, {"dtype": "float64"}, "float32.*float16"),
        (pipeline.extract, {"backbone": 5}, "expected text, got int"),
        (pipeline.extract, {"layer": ["a", 5]}, "expected text, got int"),
        (pipeline.extract, {"workers": 2.5}, "whole number, got 2.5"),
        (pipeline.extract, {"workers": np.float32(2.5)}, "whole number"),
        (pipeline.extract, {"workers": math.inf}, "whole number"),
        (pipeline.extract, {"workers": True}, "whole number, got True"),
        (pipeline.extract, {"batch_size": 0}, "1<=x<=4096"),
        (pipeline.extract, {"time_limit": math.nan}, "number, got nan"),
        (pipeline.extract, {"time_limit": math.inf}, "number, got inf"),
        (pipeline.extract, {"time_limit": False}, "number, got False"),
        (pipeline.fit_head, {"folds": 1}, "x>=2"),
        (pipeline.fit_head, {"C": [1, -1]}, "x>0"),
        (pipeline.fit_head, {"shots": [1.5]}, "whole numbers"),
        (pipeline.fit_head, {"shots": object()}, "expected numbers"),
        (pipeline.fit_head, {"set": "k"}, "NAME=VALUE"),
        (pipeline.fit_head, {"C": [1, math.inf]}, "number, got inf"),
        (pipeline.fit_head, {"group_duplicates": "near"}, "cosine"),
        (pipeline.fit_head, {"group_duplicates": math.nan}, "cosine"),
        (pipeline.fit_head, {"balanced": "perhaps"}, "boolean"),
        (pipeline.finetune, {"lr": -1}, "positive"),
        (pipeline.finetune, {"lr": "fast"}, "positive"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_refused(call: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        call("a", "b", "c", **options) if call is pipeline.finetune else call("a", "b", **options)
    assert str(caught.value).startswith(f"{call.__name__}({next(iter(options))}=…): ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_no_option_takes_a_number_that_is_none(text: str) -> None:
    asked = [
        (command, option)
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option.type, (click.types.FloatParamType, RateOrAuto, Cosine))
    ]
    assert len(asked) > 10
    for command, option in asked:
        with pytest.raises(click.BadParameter):
            option.type.convert(text, option, click.Context(command))


def test_a_limit_that_is_no_number_is_refused_by_the_command() -> None:
    done = run_command("extract", "images", "-o", "c.h5", "--time-limit", "nan")
    assert done.exit_code == 2
    assert "--time-limit': expected a number, got nan" in done.stderr


def test_images_that_are_no_path_are_refused() -> None:
    with pytest.raises(OptionError, match="path or a URL, got list"):
        pipeline.extract(["a.png"], "c.h5")  # type: ignore[arg-type]


def test_help_lists_the_keywords() -> None:
    for name, (call, _) in CALLS.items():
        text = inspect.getdoc(call) or ""
        for keyword in OTHER_VALUES[name]:
            assert f"\n{keyword} : " in text
    assert "report : default True\n    False: Do not write report.html." in (pipeline.fit_head.__doc__ or "")
