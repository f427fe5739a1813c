"""What a job shows and saves on its way: progress, phases, and what is left where one fails."""

import pytest

pytestmark = pytest.mark.usefixtures("settings_page")


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("n_iter", [1, 2])
def test_progress_only_grows_and_ends_full(host, job_of_kind, monkeypatch, kind, n_iter):
    scaled = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    seen, texts = [], []

    def on_call():
        state = host.shared.state
        share = state.sampling_step / state.sampling_steps if state.sampling_steps else 0
        seen.append((state.job_no + share) / state.job_count)
        texts.append(state.textinfo)

    host.model.on_call = on_call
    monkeypatch.setattr(host.shared.total_tqdm, "update", on_call)  # what is asked for while the host draws its own bar
    host.run(job_of_kind(kind, {"window_batch": 2, "phases": "progressive"}, n_iter=n_iter, steps=6, **scaled))
    assert seen == sorted(seen)
    assert 0.85 < seen[-1] <= 1
    assert len(set(seen)) > 5
    assert host.shared.state.job_no == host.shared.state.job_count
    assert {text for text in texts if text} == {"APT phase 1/2 128x128", "APT phase 2/2 192x192"}
    assert host.shared.state.textinfo is None


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_the_denoisers_callbacks_hear_the_steps_of_the_hosts_own_pass(host, job_of_kind, kind, sampler):
    """Once for each phase."""

    def heard(**given):
        host.script_callbacks.steps_told.clear()
        p = job_of_kind(kind, {"phases": "progressive", "window_batch": 2}, steps=10, sampler_name=sampler, **given)
        if not given:
            p.scripts = None
        host.run(p)
        return list(host.script_callbacks.steps_told)

    scaled = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    ordinary, ours = heard(), heard(**scaled)
    first = max([n for n in range(1, len(ordinary)) if ordinary[n][0] < ordinary[n - 1][0]], default=0)  # of the last pass
    assert len({step for step, _ in ordinary[first:]}) > 3
    assert ours == ordinary + ordinary[first:]


def steps_told(host, p):
    """Of every model call after the first pass: (the phase, the step, of how many), as the host tells them to other extensions' callbacks."""
    seen = []

    def on_call():
        state = host.shared.state
        if state.textinfo or (p.scripts is None and p.is_hr_pass):
            seen.append((state.textinfo, state.sampling_step, state.sampling_steps))

    host.model.on_call = on_call
    host.run(p)
    return seen


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_in_every_phase_callbacks_see_the_steps_that_they_see_in_the_host_s_own_pass(host, sampler):
    given = {"hr_scale": 3.0, "sampler_name": sampler, "steps": 3, "hr_second_pass_steps": 5, "hr_upscaler": "Latent"}
    plain = host.text_job(False, **given)
    plain.scripts = None
    own = list(dict.fromkeys((step, of) for _, step, of in steps_told(host, plain)))
    assert own == [(step, own[0][1]) for step in range(len(own))]
    assert len(own) > 1
    told = steps_told(host, host.text_job({"phases": "progressive", "window_batch": 2}, **given))
    for phase in ("APT phase 1/2 128x128", "APT phase 2/2 192x192"):
        assert list(dict.fromkeys((step, of) for text, step, of in told if text == phase)) == own


def test_after_an_error_the_bar_has_the_job_s_own_parts_again(host):
    failing_in_phase(host, 2)
    with pytest.raises(RuntimeError, match="broken"):
        host.run(host.text_job({"phases": "double"}, hr_scale=3.0, n_iter=2))
    counted = host.shared.state.job_count
    assert counted < 1000
    assert host.shared.state.job_no < counted


def test_steps_on_the_console_are_those_of_all_phases(host):
    host.run(host.text_job({"phases": "double"}, hr_scale=3.0, steps=6, n_iter=2))
    assert host.shared.total_tqdm.done == host.shared.total_tqdm.total == 2 * (6 + 2 * 6)


@pytest.mark.parametrize(("phases", "saved"), [("direct", 0), ("progressive", 1), ("1.5,2,3", 2)])
def test_every_phase_but_the_last_is_saved_once_for_each_picture(host, phases, saved):
    p = host.text_job({"phases": phases, "save_phases": True}, hr_scale=3.0, batch_size=2, do_not_save_samples=False)
    host.run(p)
    assert [one["suffix"] for one in host.images.saved] == [f"-apt-phase{n}" for n in range(1, saved + 1) for _ in range(2)]
    for index, one in enumerate(host.images.saved):
        assert one["seed"] == 11 + index % 2
        assert f"APT phase: {index // 2 + 1} of {saved + 1}" in one["info"]
        assert one["path"] == p.outpath_samples
    assert "APT phase" not in p.extra_generation_params


@pytest.mark.parametrize(("settings", "given"), [({"save_phases": True}, {}), ({}, {"do_not_save_samples": False})])
def test_no_phase_is_saved_unasked(host, settings, given):
    p = host.text_job({"enabled": True} | settings, hr_scale=3.0, **given)
    host.run(p)
    assert not host.images.saved
    assert [text for text in p.comments if "saving pictures is off" in text] == list(p.comments)
    assert bool(p.comments) == bool(settings)


def failing_in_phase(host, number):
    def on_call():
        if (host.shared.state.textinfo or "").startswith(f"APT phase {number}/"):
            raise RuntimeError("broken")

    host.model.on_call = on_call


@pytest.mark.parametrize(
    ("kind", "failing", "save_phases", "suffixes"),
    [
        ("text", 1, False, ["-apt-phase0"]),
        ("text", 2, False, ["-apt-phase1"]),
        ("text", 2, True, ["-apt-phase1"]),
        ("picture", 1, False, []),
        ("picture", 2, False, ["-apt-phase1"]),
    ],
)
def test_a_phase_that_fails_leaves_the_picture_before_it(host, job_of_kind, kind, failing, save_phases, suffixes):
    failing_in_phase(host, failing)
    scaled = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    p = job_of_kind(kind, {"save_phases": save_phases, "phases": "double"}, do_not_save_samples=False, **scaled)
    with pytest.raises(RuntimeError, match="broken"):
        host.run(p)
    assert [one["suffix"] for one in host.images.saved] == suffixes
    assert "APT phase" not in p.extra_generation_params


def test_a_picture_that_cannot_be_saved_does_not_hide_the_error(host, monkeypatch):
    failing_in_phase(host, 2)
    monkeypatch.setattr(host.images, "save_image", lambda *args, **named: 1 / 0)
    with pytest.raises(RuntimeError, match="broken"):
        host.run(host.text_job({"phases": "double"}, hr_scale=3.0, do_not_save_samples=False))
    assert len(host.errors.reports) == 1


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_windows_are_as_large_as_asked_for(host, job_of_kind, kind):
    job = job_of_kind(kind, {"method": "multidiffusion", "window": "128x64"}, sampler_name="euler")
    host.run(job)
    assert {shape[-2:] for shape in host.model.calls if shape[-1] != shape[-2]} == {(8, 16)}
    assert job.extra_generation_params["APT window"] == "128x64"


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_window_that_does_not_fit_is_refused_before_anything_is_sampled(host, job_of_kind, kind):
    with pytest.raises(host.adapter("errors").APTError, match=r"Window '100x64' does not fit this model, .* multiples of 64 pixels; use 128x64"):
        host.run(job_of_kind(kind, {"window": "100x64"}))
    assert not host.model.calls
