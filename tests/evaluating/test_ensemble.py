from dataclasses import dataclass

import pytest
import torch
from torch import nn

from neurograft.errors import InputError, OptionError
from neurograft.evaluating.ensemble import Ensemble, majority


def members(count=3):
    return [nn.Linear(4, 5) for _ in range(count)]


def test_average_is_the_mean_of_the_outputs():
    networks, x = members(), torch.randn(6, 4)
    torch.testing.assert_close(Ensemble(networks)(x), sum(network(x) for network in networks) / 3)


def test_probabilities_are_the_mean_of_the_softmaxes():
    networks, x = members(), torch.randn(6, 4)
    expected = sum(network(x).softmax(-1) for network in networks) / 3
    torch.testing.assert_close(Ensemble(networks, vote="probabilities")(x), expected)


def test_majority_counts_votes():
    outputs = torch.randn(5, 40, 3)
    votes = majority(outputs)
    counts = nn.functional.one_hot(outputs.argmax(-1), 3).sum(0).float()
    assert torch.equal(votes.floor(), counts)
    for sample in range(40):
        leaders = [c for c in range(3) if counts[sample, c] == counts[sample].max()]
        winner = max(leaders, key=lambda c: float(outputs[:, sample, c].mean()))
        assert int(votes[sample].argmax()) == winner


def test_majority_tie_goes_to_the_higher_mean_even_for_huge_outputs():
    outputs = torch.tensor([[[0.0, 1000.0, 0.0]], [[1001.0, 0.0, 0.0]]])
    assert majority(outputs).tolist() == [[1.5, 1.0, 0.0]]


def test_majority_over_the_second_dimension():
    outputs = torch.randn(3, 2, 4, 5)
    torch.testing.assert_close(majority(outputs, 1), majority(outputs.movedim(2, -1)).movedim(-1, 1))


class Pair(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, *, x):
        return {"hidden": self.scale * x, "count": torch.tensor(3)}


def test_average_of_several_outputs_with_keyword_inputs():
    out = Ensemble([Pair(1.0), Pair(3.0)])(x=torch.ones(2))
    torch.testing.assert_close(out["hidden"], torch.full((2,), 2.0))
    assert int(out["count"]) == 3


def test_hugging_face_output_keeps_its_class():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Classifier(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, pixel_values):
            return outputs.ImageClassifierOutput(logits=pixel_values + self.value, hidden_states=(pixel_values,))

    out = Ensemble([Classifier(0.0), Classifier(2.0)])(pixel_values=torch.zeros(1, 2))
    assert type(out) is outputs.ImageClassifierOutput
    torch.testing.assert_close(out.logits, torch.ones(1, 2))
    assert out.hidden_states is None


def test_members_are_used_not_copied():
    networks = members()
    assert [member is network for member, network in zip(Ensemble(networks).members, networks, strict=True)] == [
        True
    ] * 3


def test_no_members():
    with pytest.raises(InputError, match="needs at least one member"):
        Ensemble([])


def test_unknown_vote_names_the_closest():
    with pytest.raises(OptionError, match="unknown vote 'majorty'; did you mean 'majority'"):
        Ensemble(members(), vote="majorty")


def test_outputs_of_different_shape():
    with pytest.raises(InputError, match=r"differ in shape: \(1, 5\), \(1, 6\)"):
        Ensemble([nn.Linear(4, 5), nn.Linear(4, 6)])(torch.zeros(1, 4))


@dataclass
class Answer:
    scores: torch.Tensor
    classes: int = 2


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return Answer(self.layer(x))


@pytest.mark.parametrize("vote", ["average", "majority"])
def test_answers_in_a_dataclass_are_the_members_together(vote):
    models, x = [Answering(), Answering()], torch.randn(4, 3)
    together = Ensemble(models, vote=vote)(x)
    plain = Ensemble([model.layer for model in models], vote=vote)(x)
    assert torch.equal(together.scores if vote == "average" else together, plain)
