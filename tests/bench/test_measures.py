"""The benchmark's measures on pictures whose answers are known."""

import math

import pytest
import torch

from apt_ext.core.windows import draw_windows
from bench.quality import measures
from bench.quality.kernel import features, kernel_parts, whitening


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
    dense = measures.dense(x, 2, 1)
    assert dense.shape == (1, 15, 3, 2, 2)
    assert torch.equal(dense[0, 7], x[0, :, 1:3, 2:4])


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
    return kernel_parts(x, true, whitening(fitted_to.flatten(0, 1))).mean()[None]


OTHERS = picture_features(240, 4, 77)


def test_kernel_distance_tells_distributions_apart():
    same = torch.cat([distance(picture_features(24, 4, 10 * seed), picture_features(24, 4, 10 * seed + 5), OTHERS) for seed in range(40)])
    other = distance(picture_features(24, 4, 0), picture_features(24, 4, 5, mean=1.0), OTHERS)
    assert float(other) > 5 * float(same.max())
    assert abs(float(same.mean())) < 3 * float(same.std()) / math.sqrt(40), "it is unbiased, so also below zero"


def test_content_that_a_result_shares_with_its_truth_cancels():
    """Neither a bias, although a result is like its own truth, nor the noise of which scenes happen to be in which of two samples."""
    of_pairs, of_others = [], []
    for seed in range(40):
        true, further = picture_features(24, 4, 10 * seed), picture_features(24, 4, 10 * seed + 5)
        made = true + 0.1 * noise(24, 4, 8, seed=10 * seed + 7)
        of_pairs.append(distance(made, true, OTHERS))
        of_others.append(distance(made, further, OTHERS))
    paired, apart = torch.cat(of_pairs), torch.cat(of_others)
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


def test_the_parts_of_the_distance_stray_half_as_far_as_it_does():
    """The interval of the distance is taken from its parts, so it has to be as wide as the distance really strays over new pictures."""
    found, told = [], []
    for seed in range(60):
        parts = kernel_parts(picture_features(24, 4, 10 * seed, mean=1.0), picture_features(24, 4, 10 * seed + 5), whitening(OTHERS.flatten(0, 1)))
        found.append(parts.mean())
        told.append(2 * parts.std() / math.sqrt(len(parts)))
    assert float(torch.stack(told).mean() / torch.stack(found).std()) == pytest.approx(1, abs=0.3)


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


def test_psnr_of_a_known_error_and_of_none():
    x = pictures(2, 32, scale=0.2)
    torch.testing.assert_close(measures.psnr(x + 0.02, x), torch.full((2,), 40.0, dtype=torch.float64), atol=1e-3, rtol=0)
    assert float(measures.psnr(x, x).min()) > 120
    one = x.clone()
    one[1] += 0.2
    assert float(measures.psnr(one, x)[0]) > 120
    assert float(measures.psnr(one, x)[1]) == pytest.approx(20, abs=1e-3)


def test_ssim_sees_blur_that_keeps_the_means_and_ignores_nothing_else():
    x = pictures(3, 64)
    torch.testing.assert_close(measures.ssim(x, x), torch.ones(3, dtype=torch.float64))
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    assert float(measures.ssim(blurred, x).max()) < 0.6
    assert bool((measures.ssim(x + 0.02 * noise(3, 3, 64, 64), x) > measures.ssim(x + 0.2 * noise(3, 3, 64, 64), x)).all())
    assert bool((measures.ssim(x + 0.1, x) > 0.8).all()), "a shift of brightness is no change of structure"


def test_agreement_in_decibels():
    base = pictures(2, 16, scale=0.2)
    large = base.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert float(measures.agreement(large, base).min()) > 100
    torch.testing.assert_close(measures.agreement(large + 0.02, base), torch.full((2,), 40.0, dtype=torch.float64), atol=1e-3, rtol=0)


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
