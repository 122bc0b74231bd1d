import pytest
import torch
from torch import nn

from neurograft.errors import InputError, OptionError
from neurograft.evaluating.ensemble import Ensemble
from neurograft.training.distilling import distill, soft_loss


def test_soft_loss_is_the_scaled_divergence(float64):
    logits, wanted = torch.randn(6, 4), torch.randn(6, 4)
    p, q = (wanted / 3).softmax(-1), (logits / 3).softmax(-1)
    expected = 9 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(soft_loss(logits, wanted, 3.0), expected)


def test_soft_loss_gradient_does_not_fade_with_temperature(float64):
    wanted = torch.randn(3, 4)
    gradients = []
    for temperature in (50.0, 100.0):
        logits = torch.zeros(3, 4, requires_grad=True)
        soft_loss(logits, wanted, temperature).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.05, atol=1e-3)


def test_one_step_of_soft_and_hard(float64):
    student, teachers = nn.Linear(3, 2), [nn.Linear(3, 2), nn.Linear(3, 2)]
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    taught = distill(student, teachers, [(x, y)], epochs=1, lr=0.5, soft=0.7, hard=0.3)
    wanted = sum(teacher(x) for teacher in teachers).detach() / 2
    loss = 0.7 * soft_loss(student(x), wanted, 2.0) + 0.3 * nn.functional.cross_entropy(student(x), y)
    loss.backward()
    torch.testing.assert_close(taught.weight, student.weight - 0.5 * student.weight.grad)


def test_teachers_run_in_eval_mode_and_come_back():
    teacher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2)).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = nn.Linear(3, 2)
    x = torch.randn(8, 3)
    first, again = (distill(student, [teacher], [x], epochs=2) for _ in range(2))
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_an_ensemble_is_a_teacher():
    teachers, student, x = [nn.Linear(3, 2), nn.Linear(3, 2)], nn.Linear(3, 2), torch.randn(5, 3)
    one, other = distill(student, teachers, [x], epochs=1), distill(student, Ensemble(teachers), [x], epochs=1)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_validation_chooses_the_epoch():
    x, teacher = torch.randn(32, 3), nn.Linear(3, 2)
    history = []
    distill(
        nn.Linear(3, 2),
        [teacher],
        [x],
        epochs=3,
        lr=0.5,
        validation=[(x, teacher(x).argmax(-1))],
        on_epoch=history.append,
    )
    assert [epoch.number for epoch in history] == [0, 1, 2, 3]
    assert history[-1].validation.accuracy > history[0].validation.accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"soft": 0.0}, "soft=0.0 and hard=0.0 must be 0 or more and not both 0"),
        ({"hard": -1.0}, "hard=-1.0 must be 0 or more"),
    ],
    ids=["temperature", "nothing to learn from", "negative"],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        distill(nn.Linear(2, 2), [nn.Linear(2, 2)], [torch.zeros(1, 2)], **options)


def test_labels_are_needed_for_the_hard_part():
    with pytest.raises(InputError, match="epoch 1, batch 0 has no labels"):
        distill(nn.Linear(2, 2), [nn.Linear(2, 2)], [torch.zeros(1, 2)], hard=0.5)


def test_outputs_of_different_shape():
    with pytest.raises(InputError, match=r"the student gives \(1, 2\) but its teachers \(1, 3\)"):
        distill(nn.Linear(2, 2), [nn.Linear(2, 3)], [torch.zeros(1, 2)])


def test_one_output_is_a_value_and_is_taught(float64):
    student, teachers = nn.Linear(3, 1), [nn.Linear(3, 1), nn.Linear(3, 1)]
    x = torch.randn(6, 3)
    taught = distill(student, teachers, [x], epochs=1, lr=0.5)
    wanted = sum(teacher(x) for teacher in teachers).detach() / 2
    ((student(x) - wanted) ** 2).mean().backward()
    torch.testing.assert_close(taught.weight, student.weight - 0.5 * student.weight.grad)


def test_values_beside_labels_take_the_given_loss(float64):
    student, teacher = nn.Linear(3, 4), nn.Linear(3, 4)
    x, y = torch.randn(6, 3), torch.randn(6, 4)
    for loss, reference in ((None, nn.functional.mse_loss), (nn.functional.l1_loss, nn.functional.l1_loss)):
        more = {} if loss is None else {"loss": loss}
        taught = distill(student, [teacher], [(x, y)], epochs=1, lr=0.5, soft=0.7, hard=0.3, **more)
        student.zero_grad()
        (0.7 * reference(student(x), teacher(x).detach()) + 0.3 * reference(student(x), y)).backward()
        torch.testing.assert_close(taught.weight, student.weight - 0.5 * student.weight.grad)


def test_smoothed_labels_make_no_values(float64):
    student, teacher, x = nn.Linear(3, 4), nn.Linear(3, 4), torch.randn(6, 3)
    y = torch.randn(6, 4).softmax(-1)
    one, other = (distill(student, [teacher], batch, epochs=1, lr=0.5) for batch in ([(x, y)], [x]))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_probabilities_are_not_softened_twice(float64, temperature):
    teachers, student, x = [nn.Linear(3, 4), nn.Linear(3, 4)], nn.Linear(3, 4), torch.randn(6, 3)
    ensemble = Ensemble(teachers, vote="probabilities")
    taught = distill(student, ensemble, [x], epochs=1, lr=0.5, temperature=temperature)
    p = (sum(teacher(x).softmax(-1) for teacher in teachers) / 2).detach() ** (1 / temperature)
    p = p / p.sum(-1, keepdim=True)
    q = (student(x) / temperature).softmax(-1)
    (temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()).backward()
    torch.testing.assert_close(taught.weight, student.weight - 0.5 * student.weight.grad)


def test_what_teaches_nothing_is_refused():
    one, two, x = nn.Linear(2, 1), nn.Linear(2, 2), torch.randn(4, 2)
    with pytest.raises(InputError, match="one class in dimension -1, whose probability is 1"):
        distill(one, [one], [x], outputs="logits")
    with pytest.raises(InputError, match="numbers below 0, no probabilities"):
        distill(two, [nn.Sequential(two, nn.Softmax(-1), nn.Threshold(2.0, -1.0))], [x], outputs="probabilities")
    with pytest.raises(OptionError, match="unknown outputs 'logit'.*logits"):
        distill(two, [two], [x], outputs="logit")
    dead = nn.Sequential(nn.Linear(2, 2), nn.Threshold(1e9, 0.0))
    with pytest.raises(InputError, match="the gradient of every parameter is 0 in all of epoch 1"):
        distill(dead, [two], [x], outputs="values")


def test_a_student_that_computes_its_teachers_values_stays():
    teacher, x = nn.Linear(2, 1), torch.randn(4, 2)
    taught = distill(teacher, [teacher], [x], epochs=2)
    torch.testing.assert_close(taught.state_dict(), teacher.state_dict(), rtol=0, atol=0)
