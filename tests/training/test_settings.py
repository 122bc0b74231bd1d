import inspect
import typing

import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft.errors import OptionError
from neurograft.training.settings import DEFAULTS, TrainingSettings

BATCH = (torch.zeros(2, 2), torch.tensor([0, 1]))
TRAINERS = {
    "train": lambda **settings: ng.train(lambda: nn.Linear(2, 2), [BATCH], **settings),
    "finetune": lambda **settings: ng.finetune(nn.Linear(2, 2), [BATCH], **settings),
    "distill": lambda **settings: ng.distill(nn.Linear(2, 2), [nn.Linear(2, 2)], [BATCH], **settings),
}


def test_every_setting_has_a_default_a_type_and_a_description():
    types = typing.get_type_hints(TrainingSettings)
    described = [
        line.strip().partition(":")[0] for line in TrainingSettings.__doc__.partition("Attributes:")[2].splitlines()
    ]
    assert list(types) == list(DEFAULTS)
    assert [name for name in described if name in types] == list(types)


@pytest.mark.parametrize("name", TRAINERS)
def test_signature_and_help_show_the_settings(name):
    function = getattr(ng, name)
    parameters = inspect.signature(function).parameters
    assert {key: parameters[key].default for key in DEFAULTS} == DEFAULTS
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    for key in (*parameters, *DEFAULTS):
        assert f"\n        {key}: " in function.__doc__, key
    assert "**settings" not in function.__doc__


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "training has no setting 'epoch'; did you mean 'epochs'"),
        ({"epochs": -1}, "epochs=-1: must be an integer, 0 or more"),
        ({"epochs": 2.0}, "epochs=2.0: must be an integer, 0 or more"),
        ({"epochs": True}, "epochs=True: must be an integer, 0 or more"),
        ({"lr": 0.0}, "lr=0.0: must be a number above 0"),
        ({"lr": "0.1"}, "lr='0.1': must be a number above 0"),
        ({"momentum": 1.0}, "momentum=1.0: must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: must be 0 or more"),
        ({"patience": 0, "validation": [BATCH]}, "patience=0: must be None or at least 1"),
        ({"patience": 2}, "patience stops on the validation score: pass validation="),
        ({"seed": "a"}, "seed='a': must be an integer from 0 to"),
        ({"schedule": "cosinus"}, "schedule='cosinus' is not known; did you mean 'cosine'"),
        ({"precision": "fp32"}, "precision='fp32' is not known; .*known: bf16, float32, fp16"),
        ({"device": "gpu"}, "device='gpu': Expected one of cpu, cuda"),
        ({"progress": 1}, "progress=1: must be True or False"),
        ({"on_epoch": []}, r"on_epoch=\[\]: must be a function, or None"),
        ({"checkpoint": 3}, "checkpoint=3: must be a path, or None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_meant(name, settings, message):
    with pytest.raises(OptionError, match=message):
        TRAINERS[name](**settings)
