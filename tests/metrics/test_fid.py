from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.metrics.extractors import InceptionExtractor, MicroExtractor
from m2chat.metrics.feature_net import FeatureNet
from m2chat.metrics.fid import Moments, _congruent, frechet_distance, root_trace

RNG = np.random.default_rng(0)


def pictures(count: int, seed: int, size: int = 32) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> MicroExtractor:
    folder = tmp_path_factory.mktemp("fid")
    torch.manual_seed(0)
    FeatureNet({"shape": 4}, num_features=6, width=8).save(folder)
    return MicroExtractor(str(folder))


def test_one_dimension_by_hand() -> None:
    # Means 1 and 4, variances 1 and 4: (1-4)^2 + 1 + 4 - 2*sqrt(4) = 10.
    real = Moments.of(np.array([[0.0], [1.0], [2.0]]))
    generated = Moments.of(np.array([[2.0], [4.0], [6.0]]))
    assert frechet_distance(real, generated) == pytest.approx(10.0)


def test_the_same_pictures_are_at_no_distance() -> None:
    moments = Moments.of(RNG.normal(size=(40, 8)))
    assert frechet_distance(moments, moments) == pytest.approx(0.0, abs=1e-9)


def test_moments_of_parts_add_up() -> None:
    features = RNG.normal(1000.0, 1.0, (30, 5))
    whole = Moments.of(features)
    parts = Moments.of(features[:11]) + Moments.of(features[11:])
    assert parts.n == 30
    assert parts.covariance == pytest.approx(np.cov(features.T), abs=1e-6)
    assert parts.mean == pytest.approx(whole.mean)


def test_one_picture_gives_nan_and_a_warning() -> None:
    one, two = Moments.of(np.ones((1, 3))), Moments.of(RNG.normal(size=(2, 3)))
    with pytest.warns(UserWarning, match="two pictures a side"):
        assert np.isnan(frechet_distance(two, one))


def test_features_that_are_not_finite_are_left_out() -> None:
    features = RNG.normal(size=(5, 3))
    features[2, 1] = np.inf
    with pytest.warns(UserWarning, match="left out 1"):
        assert Moments.of(features).n == 4


def test_the_distance_is_that_of_torchmetrics(extractor: MicroExtractor) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, generated = pictures(30, 1), pictures(25, 2)
    generated = [np.clip(picture.astype(int) // 2 + 60, 0, 255).astype(np.uint8) for picture in generated]
    network = FeatureNet.load(extractor.folder)

    class Features(torch.nn.Module):
        num_features = 6

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return network.features(network.prepare(pixels)).detach()

    theirs = FrechetInceptionDistance(feature=Features(), normalize=False).set_dtype(torch.float64)
    for side, is_real in ((real, True), (generated, False)):
        theirs.update(torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2), real=is_real)
    ours = frechet_distance(Moments.of(extractor.extract(real)), Moments.of(extractor.extract(generated)))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-4)
    assert ours > 1e-3


def test_the_distance_is_that_of_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    real, generated = RNG.normal(size=(50, 7)), RNG.normal(0.5, 2.0, (60, 7))
    statistics = [fid_features_to_statistics(torch.from_numpy(side)) for side in (real, generated)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(Moments.of(real), Moments.of(generated)) == pytest.approx(theirs, rel=1e-7)


def test_every_way_to_the_trace_agrees() -> None:
    many = [RNG.normal(size=(60, 12)) @ RNG.normal(size=(12, 12)) for _ in range(2)]
    few = [side[:8] for side in many]

    def by_roots(real: Moments, generated: Moments) -> float:
        """The definition: a matrix's root by its eigenvectors, twice."""
        values, vectors = np.linalg.eigh(real.covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        return float(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ generated.covariance @ root), 0)).sum())

    for real, generated in ((many[0], many[1]), (few[0], few[1]), (few[0], many[1]), (many[0], few[1])):
        sides = Moments.of(real), Moments.of(generated)
        assert [side.features is not None for side in sides] == [len(real) < 12, len(generated) < 12]
        assert root_trace(*sides) == pytest.approx(by_roots(*sides), rel=1e-7)  # the definition itself is off by 1e-8
        # Sums alone, as a file of moments holds them, have lost the vectors: their covariance has no full rank then.
        bare = [Moments(side.n, side.total, side.outer) for side in sides]
        assert root_trace(*bare) == pytest.approx(by_roots(*sides), rel=1e-5)


def test_blocks_of_the_congruence_are_those_of_the_product() -> None:
    root, symmetric = np.tril(RNG.normal(size=(70, 70))), RNG.normal(size=(70, 70))
    symmetric = symmetric + symmetric.T
    found = _congruent(root, symmetric, block=32)
    assert np.tril(found) == pytest.approx(np.tril(root.T @ symmetric @ root))


def test_vectors_are_kept_while_they_are_fewer_than_features() -> None:
    parts = [Moments.of(RNG.normal(size=(3, 8))) for _ in range(3)]
    two = parts[0] + parts[1]
    assert two.features is not None and len(two.features) == 6
    assert (two + parts[2]).features is None and (two + parts[2]).n == 9


def test_moments_belong_to_an_extractor(tmp_path: Path) -> None:
    moments = Moments.of(RNG.normal(size=(9, 4)))
    moments.save(tmp_path / "real.npz", "inception, short side 256")
    found = Moments.load(tmp_path / "real.npz", "inception, short side 256")
    assert (found.n, found.covariance.tolist()) == (9, moments.covariance.tolist())
    with pytest.raises(UserError, match="of the extractor"):
        Moments.load(tmp_path / "real.npz", "micro")
    with pytest.raises(UserError, match="eval moments"):
        Moments.load(tmp_path / "none.npz", "micro")


def test_inception_sees_what_the_protocol_says() -> None:
    extractor = InceptionExtractor("w.pth", short_side=64, crop=True)
    assert extractor._resized(pictures(1, 0, 128)[0][:96]).shape == (64, 64, 3)
    assert InceptionExtractor("w.pth", short_side=64)._resized(pictures(1, 0, 128)[0][:96]).shape == (64, 85, 3)
    assert extractor.name != InceptionExtractor("w.pth", short_side=64).name


def test_order_and_batch_size_do_not_matter(extractor: MicroExtractor) -> None:
    mixed = pictures(7, 3) + pictures(3, 4, size=48)
    order = np.random.default_rng(5).permutation(len(mixed))
    one_by_one = MicroExtractor(str(extractor.folder), batch_size=1)
    expected = extractor.extract(mixed)[order]
    assert one_by_one.extract([mixed[i] for i in order]) == pytest.approx(expected, abs=1e-4)


def test_the_extractor_sees_where_things_are(extractor: MicroExtractor) -> None:
    left = np.zeros((32, 32, 3), np.uint8)
    left[8:24, 4:12] = 255
    features = extractor.extract([left, left[:, ::-1].copy()])
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_a_missing_extractor_names_the_remedy() -> None:
    with pytest.raises(UserError, match="make backbones"):
        MicroExtractor("nowhere").extract(pictures(1, 0))
    with pytest.raises(UserError, match="torch-fidelity"):
        InceptionExtractor("nowhere.pth").extract(pictures(1, 0, 256))


def test_no_pictures_have_no_features(extractor: MicroExtractor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extractor.extract([]).shape == (0, 6)


def test_statistics_of_other_tools_are_refused_by_name(tmp_path: Path) -> None:
    files = {"mu.npz": {"mu": np.zeros(4), "sigma": np.eye(4)}, "other.npz": {"arr_0": np.zeros(4)}}
    for name, arrays in files.items():
        np.savez(tmp_path / name, **arrays)
    np.save(tmp_path / "stats.npy", np.zeros(4))
    for name, message in (
        ("mu.npz", r"holds mu and sigma, as pytorch-fid .* `m2chat eval moments"),
        ("other.npz", "holds arr_0, and no moments"),
        ("stats.npy", r"single array \(\.npy\)"),
    ):
        with pytest.raises(UserError, match=message):
            Moments.load(tmp_path / name, "micro")
    Moments.of(np.random.default_rng(0).normal(size=(5, 3))).save(tmp_path / "no.suffix", "micro")
    assert Moments.load(tmp_path / "no.suffix", "micro").n == 5
