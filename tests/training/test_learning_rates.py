import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import neurograft as ng
from neurograft.errors import OptionError
from neurograft.training.learning_rates import factor_of

EPOCHS = 7


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("constant", lambda o: lr_scheduler.ConstantLR(o, factor=1)),
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=EPOCHS)),
        ("step:2,5", lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 5], gamma=0.1)),
        ("halve:3", lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5)),
        (lambda done: 1 / (1 + done), lambda o: lr_scheduler.LambdaLR(o, lambda done: 1 / (1 + done))),
    ],
    ids=["constant", "cosine", "step", "halve", "function"],
)
def test_schedules_train_as_those_of_torch(schedule, reference, float64):
    model, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
    tuned = ng.finetune(model, [(x, y)], epochs=EPOCHS, lr=0.5, momentum=0.5, schedule=schedule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    scheduler = reference(optimizer)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(tuned.state_dict(), model.state_dict())


def test_a_schedule_works_on_every_group_of_another_optimizer(float64):
    model, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))

    def optimizer(parameters):
        weight, bias = parameters
        return torch.optim.SGD([{"params": [weight], "lr": 0.2}, {"params": [bias], "lr": 0.1}])

    tuned = ng.finetune(model, [(x, y)], epochs=1, optimizer=optimizer, schedule=lambda done: 0.5)
    nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(tuned.weight, model.weight - 0.1 * model.weight.grad)
    torch.testing.assert_close(tuned.bias, model.bias - 0.05 * model.bias.grad)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("step", "needs increasing numbers of epochs, as in 'step:50,80'"),
        ("step:80,50", "needs increasing numbers"),
        ("step:0", "needs increasing numbers"),
        ("halve:x", "needs increasing numbers"),
        ("halve:1,2", "'halve' takes one number of epochs"),
        ("cosine:3", "'cosine' takes no numbers"),
        (0.5, "schedule=0.5: must be a string, such as 'cosine', or a function"),
    ],
)
def test_schedules_that_cannot_be_meant(schedule, message):
    with pytest.raises(OptionError, match=message):
        factor_of(schedule, 10)


def test_a_function_must_give_factors():
    with pytest.raises(OptionError, match="schedule gave -1 after 0 epochs: must be a number, 0 or more"):
        factor_of(lambda done: -1, 10)(0)
