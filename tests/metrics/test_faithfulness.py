import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.metrics.faithfulness import faithfulness_correlation, faithfulness_estimate
from heatproof.metrics.faithfulness.correlations import pearson
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from support.cases import PixelSum, Wavy, make_case, slow_estimate, slow_pearson


@pytest.fixture
def images():
    return torch.randn(4, 1, 8, 8)


@pytest.mark.parametrize("step", [1, 5, 8, 31, None])
def test_the_true_contributions_of_a_sum_score_one_and_their_opposites_minus_one(images, step):
    weights = torch.randn(2, 1, 8, 8)
    truth = images[:, 0] * weights[1]
    for maps, expected in ((truth, 1.0), (3 * truth, 1.0), (-truth, -1.0)):
        case = make_case(PixelSum(weights), images, maps, torch.ones(4, dtype=torch.long))
        found = faithfulness_estimate(case, step=step, baseline=0.0, output="logit")
        assert torch.allclose(found, torch.full((4,), expected, dtype=torch.float64), atol=1e-6)


def test_a_hand_computed_example():
    # Pixels in descending order of the map: b (4), a (3), d (2), c (1).
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    maps = torch.tensor([[[3.0, 4.0], [1.0, 2.0]]])
    net = PixelSum(torch.tensor([[[[1.0, 0.5], [2.0, -1.0]]]]))
    # f drops by 1·1 = 1 (a), 0.5·2 = 1 (b), 2·3 = 6 (c), −4 (d); chunks of one: drops 1, 1, −4, 6 against 4, 3, 2, 1.
    case = make_case(net, images, maps)
    # chunks of two: drops 1 + 1 and −4 + 6 are equal
    assert faithfulness_estimate(case, step=2, baseline=0.0, output="logit").isnan().all()
    x, y = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 1.0, -4.0, 6.0])
    found = faithfulness_estimate(case, step=1, baseline=0.0, output="logit")
    assert found.item() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    # chunks of three: sums 9 and 1, drops 1 + 1 − 4 = −2 and 6: two points, falling
    assert faithfulness_estimate(case, step=3, baseline=0.0, output="logit").item() == pytest.approx(-1.0)


@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("step", [1, 7, None])
@pytest.mark.parametrize("channels", [1, 3])
def test_agreement_with_a_slow_replica_in_float64(channels, step, output):
    images, maps = torch.randn(3, channels, 8, 8), torch.randn(3, 8, 8)
    targets = torch.tensor([0, 2, 1])
    model = Classifier(Wavy(channels=channels).eval(), mean=[0.4] * 3, std=[0.2] * 3)
    model = model if channels == 3 else model.with_preprocessing(channels=1, mean=(0.4,), std=(0.2,))
    found = faithfulness_estimate(make_case(model, images, maps, targets), step=step, output=output)
    net = Wavy(channels=channels).double().eval()
    black = np.full((channels, 8, 8), -2.0)
    for b in range(3):

        def f(x, target=int(targets[b])):
            with torch.no_grad():
                logits = net(torch.from_numpy(x)[None])[0]
            return float((logits.softmax(0) if output == "probability" else logits)[target])

        expected = slow_estimate(f, images[b].numpy(), maps[b].numpy(), step or 8, black)
        assert found[b].item() == pytest.approx(expected, abs=2e-5)


def test_absolute_ranks_and_sums_absolute_values(images):
    maps = torch.randn(4, 8, 8)
    found = faithfulness_estimate(make_case(Wavy(), images, maps), baseline=0.0, absolute=True)
    expected = faithfulness_estimate(make_case(Wavy(), images, maps.abs()), baseline=0.0)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, faithfulness_estimate(make_case(Wavy(), images, maps), baseline=0.0))


def test_undefined_cases_are_nan_and_leave_the_others_alone(images):
    maps = torch.rand(4, 8, 8)
    expected = faithfulness_estimate(make_case(Wavy(), images, maps), baseline=0.0)
    broken = maps.clone()
    broken[0], broken[2, 3, 3] = 0.5, torch.nan
    found = faithfulness_estimate(make_case(Wavy(), images, broken), baseline=0.0)
    assert found.isnan().tolist() == [True, False, True, False]
    assert torch.equal(found[[1, 3]], expected[[1, 3]])


def test_an_output_that_no_chunk_changes_is_nan(images):
    case = make_case(PixelSum(torch.zeros(2, 1, 8, 8)), images, torch.rand(4, 8, 8))
    assert faithfulness_estimate(case, baseline=0.0).isnan().all()


def test_a_saturated_output_is_nan_rather_than_correlated_rounding(images):
    weights = torch.zeros(2, 1, 8, 8)
    weights[1] = 1e-7
    net = torch.nn.Sequential(PixelSum(weights), torch.nn.Tanh())
    case = make_case(Classifier(net.eval()), images, torch.rand(4, 8, 8))
    assert faithfulness_estimate(case, baseline=0.0).isnan().all()


def test_one_chunk_is_nan(images):
    assert faithfulness_estimate(make_case(Wavy(), images, torch.rand(4, 8, 8)), step=64, baseline=0.0).isnan().all()


@pytest.mark.parametrize("step", [0, 65, 3.0])
def test_an_impossible_step_is_refused(images, step):
    with pytest.raises(InputError, match="step must be a whole number, from 1 to 64"):
        faithfulness_estimate(make_case(Wavy(), images, torch.rand(4, 8, 8)), step=step, baseline=0.0)


def test_ties_do_not_depend_on_the_order_of_pixels(images):
    maps = (torch.rand(4, 8, 8) > 0.5).float()
    scores = [faithfulness_estimate(make_case(Wavy(), images, maps, seed=s), baseline=0.0) for s in range(3)]
    assert not torch.allclose(scores[0], scores[1])
    again = faithfulness_estimate(make_case(Wavy(), images, maps, seed=0), baseline=0.0)
    assert torch.equal(scores[0], again)


# correlation over random sets


def test_correlation_agrees_with_the_definition_in_float64(images):
    maps, targets = torch.randn(4, 8, 8), torch.tensor([0, 2, 1, 0])
    model = Classifier(Wavy().eval(), channels=1, mean=[0.4], std=[0.2])
    found = faithfulness_correlation(make_case(model, images, maps, targets), subset_size=9, runs=30)
    net = Wavy().double().eval()
    for b in range(4):
        random = SampleRandom(0, [str(b)])
        sets = [random.subset(9, 64, purpose=f"subset {k}")[0] for k in range(30)]

        def f(x, target=int(targets[b])):
            with torch.no_grad():
                return float(net(x[None])[0].softmax(0)[target])

        image, sums, drops = images[b].double(), [], []
        for chosen in sets:
            changed = image.clone()
            changed[0].view(-1)[chosen] = -2.0
            sums.append(float(maps[b].double().view(-1)[chosen].sum()))
            drops.append(f(image) - f(changed))
        assert found[b].item() == pytest.approx(slow_pearson(sums, drops), abs=2e-5)


@pytest.mark.parametrize("subset_size", [1, 9, 63])
def test_the_true_contributions_correlate_perfectly_over_random_sets(images, subset_size):
    weights = torch.randn(2, 1, 8, 8)
    truth = images[:, 0] * weights[1]
    for maps, expected in ((truth, 1.0), (3 * truth, 1.0), (-truth, -1.0)):
        case = make_case(PixelSum(weights), images, maps, torch.ones(4, dtype=torch.long))
        found = faithfulness_correlation(case, subset_size=subset_size, runs=40, baseline=0.0, output="logit")
        assert torch.allclose(found, torch.full((4,), expected, dtype=torch.float64), atol=1e-5)


def test_over_many_sets_it_is_the_correlation_of_the_pixels(images):
    # Sums over sets of a fixed size covary as the pixels do.
    weights, runs = torch.randn(1, 1, 8, 8), 3000
    truth = images[:, 0] * weights[0]
    maps = truth + torch.randn(4, 8, 8)
    case = make_case(PixelSum(weights), images, maps, batch_size=512)
    found = faithfulness_correlation(case, subset_size=16, runs=runs, baseline=0.0, output="logit")
    expected = [np.corrcoef(a.flatten(), c.flatten())[0, 1] for a, c in zip(maps.numpy(), truth.numpy(), strict=True)]
    for r, rho in zip(found.tolist(), expected, strict=True):
        assert abs(np.arctanh(r) - np.arctanh(rho)) < 5 / runs**0.5


def test_more_runs_add_to_the_same_draws_and_every_draw_has_distinct_pixels(images):
    seen = []

    class Seen(torch.nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x.flatten(1)[:, :2]

    case = make_case(Seen(), torch.ones(1, 1, 8, 8), torch.rand(1, 8, 8), batch_size=64)
    faithfulness_correlation(case, subset_size=20, runs=5, baseline=0.0)
    few = seen[0]
    seen.clear()
    faithfulness_correlation(case, subset_size=20, runs=9, baseline=0.0)
    assert (few == 0).flatten(1).sum(1).tolist() == [20] * 5
    assert torch.equal(seen[0][:5], few)
    assert len(seen[0].flatten(1).unique(dim=0)) == 9


def test_every_pixel_is_drawn_equally_often():
    images, runs = torch.ones(1, 1, 4, 4), 4000
    replaced = torch.zeros(16)

    class Seen(torch.nn.Module):
        def forward(self, x):
            replaced.add_((x == 0).flatten(1).sum(0))
            return x.flatten(1)[:, :2]

    case = make_case(Seen(), images, torch.rand(1, 4, 4), batch_size=500)
    case.probe.unmasked()
    faithfulness_correlation(case, subset_size=4, runs=runs, baseline=0.0)
    assert ((replaced - runs / 4).abs() < 5 * (runs * 0.25 * 0.75) ** 0.5).all()


def test_correlation_of_undefined_cases_is_nan(images):
    maps = torch.rand(4, 8, 8)
    given = {"subset_size": 9, "runs": 20, "baseline": 0.0}
    expected = faithfulness_correlation(make_case(Wavy(), images, maps), **given)
    broken = maps.clone()
    broken[0], broken[2, 3, 3] = 0.5, torch.nan
    found = faithfulness_correlation(make_case(Wavy(), images, broken), **given)
    assert found.isnan().tolist() == [True, False, True, False]
    assert torch.equal(found[[1, 3]], expected[[1, 3]])
    still = make_case(PixelSum(torch.zeros(2, 1, 8, 8)), images, maps)
    assert faithfulness_correlation(still, **given).isnan().all()
    assert faithfulness_correlation(make_case(Wavy(), images, maps), **(given | {"subset_size": 64})).isnan().all()
    signed = faithfulness_correlation(make_case(Wavy(), images, maps - 0.5), **given, absolute=True)
    assert torch.equal(signed, faithfulness_correlation(make_case(Wavy(), images, (maps - 0.5).abs()), **given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "subset_size must be a whole number, from 1 to 64, got 224"),
        ({"subset_size": 0}, "subset_size must be a whole number"),
        ({"subset_size": 9, "runs": 0}, "runs must be a whole number, at least 1, got 0"),
    ],
)
def test_impossible_sets_are_refused(images, options, message):
    with pytest.raises(InputError, match=message):
        faithfulness_correlation(make_case(Wavy(), images, torch.rand(4, 8, 8)), baseline=0.0, **options)


def test_pearson_against_numpy_and_where_it_is_undefined():
    x, y = torch.randn(5, 30), torch.randn(5, 30)
    found = pearson(x, y, resolution=torch.zeros(5, 1))
    for b in range(5):
        assert found[b].item() == pytest.approx(np.corrcoef(x[b].double(), y[b].double())[0, 1], abs=1e-12)
    constant = torch.full((1, 7), 0.1)
    assert pearson(constant, y[:1, :7], resolution=torch.zeros(1, 1)).isnan().all()
    assert pearson(y[:1, :7], constant, resolution=torch.full((1, 1), 1e-9)).isnan().all()
    small = 1e-3 * y[:1]
    assert pearson(x[:1], small, resolution=torch.full((1, 1), 0.01)).isnan().all()
    assert not pearson(x[:1], small, resolution=torch.full((1, 1), 1e-4)).isnan().any()
