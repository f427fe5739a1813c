"""The benchmark's measures on pictures whose answers are known."""

import math

import pytest
import torch

from apt_ext.core.upscale import enlarge
from apt_ext.core.windows import draw_windows
from bench.quality import measures
from bench.quality.kernel import features, kernel_distance, kernel_pairs, whitening


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(n, side, seed=0, scale=0.4):
    return (noise(n, 3, side, side, seed=seed) * scale).clamp(-1, 1)


def smooth(n, side, seed=0):
    return torch.nn.functional.interpolate(noise(n, 3, side // 8, side // 8, seed=seed) * 0.4, size=side, mode="bicubic").clamp(-1, 1)


def test_windows_are_disjoint_and_complete():
    x = torch.arange(3 * 4 * 6, dtype=torch.float32).reshape(1, 3, 4, 6)
    windows = measures.cut(x, 2)
    assert windows.shape == (1, 6, 3, 2, 2)
    assert torch.equal(windows[0, 4], x[0, :, 2:4, 2:4])
    assert sorted(windows.flatten().tolist()) == sorted(x.flatten().tolist())


def test_features_are_the_same_in_every_run_and_batch():
    x = pictures(3, 64)
    assert features(x).shape == (3, 336)
    torch.testing.assert_close(features(x)[1:2], features(x[1:2]))
    assert float((features(x)[0] - features(x)[1]).abs().max()) > 1e-3


def test_a_pictures_mean_colour_is_no_feature():
    x = pictures(2, 64, scale=0.1)
    torch.testing.assert_close(features(x + torch.tensor([0.3, -0.2, 0.1])[:, None, None]), features(x), atol=1e-5, rtol=0)
    assert not torch.allclose(features(1.5 * x), features(x), atol=1e-2)


def test_whitened_features_are_uncorrelated_and_of_unit_variance():
    x = noise(200, 5) @ noise(5, 5, seed=1) + 2
    x = torch.cat([x, torch.full((200, 1), 7.0), x[:, :1]], 1)  # one that is constant, one that says nothing new
    y = whitening(x)(x)
    assert y.shape == (200, 5)
    torch.testing.assert_close(y.T @ y / 199, torch.eye(5, dtype=torch.float64), atol=1e-6, rtol=0)
    assert whitening(noise(24, 7))(x).shape == (200, 3)
    assert float(whitening(x)(x + 100 * (torch.arange(7) == 5)).sub(y).abs().max()) == 0


def picture_features(n, k, seed, mean=0.0):
    """k windows of n pictures, alike within a picture."""
    return noise(n, 1, 8, seed=seed) + 0.3 * noise(n, k, 8, seed=seed + 1) + mean


def distance(x, true, fitted_to):
    return kernel_distance(kernel_pairs(x, true, whitening(fitted_to.flatten(0, 1))), torch.ones(1, len(x)))


OTHERS = picture_features(240, 4, 77)


def test_kernel_distance_tells_distributions_apart():
    same = torch.cat([distance(picture_features(24, 4, 10 * seed), picture_features(24, 4, 10 * seed + 5), OTHERS) for seed in range(40)])
    other = distance(picture_features(24, 4, 0), picture_features(24, 4, 5, mean=1.0), OTHERS)
    assert float(other) > 5 * float(same.max())
    assert abs(float(same.mean())) < 3 * float(same.std()) / math.sqrt(40), "it is unbiased, so also below zero"


def test_content_that_a_result_shares_with_its_truth_cancels():
    """Neither a bias, although a result is like its own truth, nor the noise of which scenes happen to be in which of two samples."""
    paired, apart = [], []
    for seed in range(40):
        true, further = picture_features(24, 4, 10 * seed), picture_features(24, 4, 10 * seed + 5)
        made = true + 0.1 * noise(24, 4, 8, seed=10 * seed + 7)
        paired.append(distance(made, true, OTHERS))
        apart.append(distance(made, further, OTHERS))
    paired, apart = torch.cat(paired), torch.cat(apart)
    assert float(paired.std()) < float(apart.std()) / 3
    assert abs(float(paired.mean())) < 3 * float(apart.std()) / math.sqrt(40)
    assert float(distance(true, true, OTHERS)) == 0


def test_kernel_distance_against_the_definition():
    x, y, others = picture_features(4, 2, 0), picture_features(4, 8, 3), picture_features(10, 4, 6)
    a, b = (whitening(others.flatten(0, 1))(t) for t in (x, y))
    assert a.shape[-1] == 5

    def between(p, q):
        """Mean kernel between the windows of two pictures."""
        return sum(float((v @ w / 5 + 1) ** 3) for v in p for w in q) / (len(p) * len(q))

    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    own, true, cross = (sum(between(p[i], q[j]) for i, j in pairs) / len(pairs) for p, q in ((a, a), (b, b), (a, b)))
    assert float(distance(x, y, others)) == pytest.approx(100 * (own + true - 2 * cross), rel=1e-9)


def test_a_resample_never_pairs_a_picture_with_itself():
    pairs = torch.tensor([[1000.0, 1.0, 2.0], [1.0, 1000.0, 3.0], [2.0, 3.0, 1000.0]], dtype=torch.float64)
    resamples = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    torch.testing.assert_close(kernel_distance(pairs, resamples), torch.tensor([200.0, 100.0, 200.0], dtype=torch.float64))


def test_kinds_of_pictures_far_apart_leave_the_distance_unbiased():
    """Few pictures of each of four kinds: no picture meets itself or its own truth, so both count the pairs within a kind alike."""
    kinds, centres = torch.arange(12) % 4, 3 * noise(4, 1, 8, seed=99)

    def between(seed):
        x, y = (picture_features(12, 2, s) + centres[kinds] for s in (seed, seed + 5))
        return float(distance(x, y, OTHERS))

    found = torch.tensor([between(10 * seed) for seed in range(30)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / math.sqrt(30)


def test_real_pictures_of_one_kind_are_close_and_of_another_far():
    def of(x):
        return features(x)[:, None]

    others = of(smooth(48, 64, seed=3))
    near = distance(of(smooth(24, 64, seed=1)), of(smooth(24, 64, seed=2)), others)
    far = distance(of(pictures(24, 64, seed=1)), of(smooth(24, 64, seed=2)), others)
    assert abs(near) < 0.05 * far


def test_spectrum_of_noise_is_flat_of_a_smooth_picture_falls_and_of_a_wave_peaks():
    flat = measures.log_spectrum(pictures(8, 64)).mean(0)
    assert flat.shape == (32,)
    assert abs(float(flat[2:16].mean() - flat[16:].mean())) < 0.1
    falling = measures.log_spectrum(smooth(8, 64)).mean(0)
    assert float(falling[:4].mean() - falling[16:].mean()) > 2
    wave = torch.cos(2 * math.pi * 12 * torch.arange(64) / 64).expand(1, 3, 64, 64)
    assert int(measures.log_spectrum(wave)[0].argmax()) == 11


def test_twice_the_contrast_is_four_times_the_power():
    x = pictures(2, 32, scale=0.1)
    torch.testing.assert_close(
        measures.log_spectrum(2 * x) - measures.log_spectrum(x), torch.full((2, 16), math.log10(4), dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_shift_of_a_scaled_and_moved_latent():
    base = noise(2, 4, 16, 16)
    z = base.repeat_interleave(2, 2).repeat_interleave(2, 3)
    z = torch.stack([z[0], z[1] * 0.5])
    got = measures.shift(z, base)
    torch.testing.assert_close(got[:, 1], torch.tensor([1.0, 0.5]), atol=1e-5, rtol=0)
    assert float(got[0, 0]) < 1e-5 < float(got[1, 0])


def test_monotonicity_of_noise_of_a_ramp_and_of_a_checkerboard():
    assert abs(float(measures.monotonicity(noise(4, 4, 64, 64), 16).mean())) < 0.02
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    assert float(measures.monotonicity(ramp, 16)) > 0.75
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1)[None, None]
    assert float(measures.monotonicity(board, 16)) == pytest.approx(-1)
    small = noise(4, 4, 16, 16)
    assert bool((measures.monotonicity(enlarge(small, (64, 64)), 16) > measures.monotonicity(small, 16) + 0.5).all())


def test_agreement_in_decibels():
    base = pictures(2, 16, scale=0.2)
    large = base.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert float(measures.agreement(large, base).min()) > 100
    torch.testing.assert_close(measures.agreement(large + 0.02, base), torch.full((2,), 40.0), atol=1e-3, rtol=0)


def test_a_planted_seam_shows_at_its_own_windows_only():
    windows = draw_windows(0, size=(32, 32), window=(16, 16), overlap=0.0, jitter=0.0)
    elsewhere = draw_windows(0, size=(32, 32), window=(12, 12), overlap=0.0, jitter=0.0)
    clean = smooth(3, 128)
    planted = clean.clone()
    planted[..., 64:] += 0.5
    none = measures.seams(clean, windows, 4)
    assert bool((none > 0.6).all())
    assert bool((none < 1.6).all())
    assert bool((measures.seams(planted, windows, 4) > 3 * none).all())
    assert bool((measures.seams(planted, elsewhere, 4) < 1.2 * measures.seams(clean, elsewhere, 4)).all())
    assert bool(measures.seams(clean, draw_windows(0, size=(32, 32), window=(32, 32)), 4).isnan().all())


def test_the_decoders_own_grid_is_no_seam():
    blocks = noise(3, 3, 32, 32).repeat_interleave(4, 2).repeat_interleave(4, 3)
    windows = draw_windows(0, size=(32, 32), window=(16, 16), overlap=0.0, jitter=0.0)
    torch.testing.assert_close(measures.seams(blocks, windows, 4), torch.ones(3), atol=0.4, rtol=0)


def test_structure_follows_the_place_of_shapes_and_not_their_contrast():
    x = smooth(3, 64)
    torch.testing.assert_close(measures.structure(0.5 * x, x, 2.0), torch.ones(3, dtype=torch.float64))
    assert float(measures.structure(x + 0.02 * noise(3, 3, 64, 64), x, 2.0).min()) > 0.5
    assert float(measures.structure(x.flip(3), x, 2.0).max()) < 0.5


def test_a_duplicated_picture_repeats_itself_wherever_the_copy_lies():
    x = pictures(2, 128)
    once = measures.repetition(x, 32)
    twice = x.clone()
    twice[..., 64:] = x[..., :64].roll(7, 2)
    tiled = x[..., :32, :32].repeat(1, 1, 4, 4)
    assert bool((measures.repetition(twice, 32) > once).all())
    torch.testing.assert_close(measures.repetition(tiled, 32), torch.ones(2, dtype=torch.float64))
    assert float(once.max()) < 0.6
    torch.testing.assert_close(measures.repetition(x * 0.3, 32), once, atol=1e-3, rtol=0)
