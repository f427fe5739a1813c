// The panel under the APT accordion: asks the server what the job would do, and draws it.
// Every number comes from the server, which plans with the same code that runs the job.

// A preset's steps and denoising strength go into the host's own fields, where the user sees them; so does its upscaler, through the server.
function aptFillHost(presetId, values) {
    if (!values) return []; // Custom
    const tab = presetId.includes("txt2img") ? "txt2img" : "img2img";
    // The hires pass runs all of its steps, img2img a share of them.
    const steps = tab === "txt2img" ? {txt2img_hires_steps: values.hires_steps} : {img2img_steps: values.steps};
    const fields = {...steps, [`${tab}_denoising_strength`]: values.denoising};
    for (const [id, value] of Object.entries(fields)) {
        const input = gradioApp().querySelector(`#${id} input[type=number]`);
        if (!input) continue;
        input.value = value;
        updateInput(input);
    }
    return []; // gradio takes anything else for the value of an output, of which there is none
}

(function() {
    const NAMES = ["preset", "method", "upscaler", "colour_fix", "phases", "matching", "gamma", "overlap", "jitter", "window_batch", "tiled_vae",
        "save_phases", "word_threshold", "draw_words", "skip_residual", "residual_decay", "dilated_decay", "blur_decay", "blur", "feather",
        "tolerance", "border", "fill", "reanchor", "window", "regions", "own_settings"];
    const WAIT = 300; // milliseconds after the last change
    const PATIENCE = 5000; // after an error

    function field(id) {
        const root = gradioApp().getElementById(id);
        if (!root) return null;
        const radio = root.querySelector("input[type=radio]:checked");
        if (radio) return radio.value;
        const box = root.querySelector("input[type=checkbox]");
        if (box) return box.checked;
        const input = root.querySelector("input[type=number], input, textarea");
        if (!input) return null;
        return input.type === "number" ? parseFloat(input.value) : input.value;
    }

    function chosen(id, same, otherwise) {
        const value = field(id);
        return !value || value === same ? otherwise : value;
    }

    function settings(prefix) {
        const values = {};
        for (const name of NAMES) {
            const value = field(prefix + name);
            if (value !== null && !Number.isNaN(value)) values[name] = value;
        }
        return values;
    }

    // Of the noise levels of some of Forge Neo's checkpoints; for others the field says something else, and no host but Forge and Neo has it.
    function shift(id) {
        const value = field(id);
        return value === null || Number.isNaN(value) ? {} : {shift: value};
    }

    function asHires(prefix, scale) {
        const width = field("txt2img_width"), height = field("txt2img_height");
        const x = scale ? 0 : field("txt2img_hr_resize_x"), y = scale ? 0 : field("txt2img_hr_resize_y");
        let target = [Math.floor(width * (scale || field("txt2img_hr_scale"))), Math.floor(height * (scale || field("txt2img_hr_scale")))];
        if (x && y) target = [x, y];
        else if (x) target = [x, Math.floor(x * height / width)];
        else if (y) target = [Math.floor(y * width / height), y];
        const scheduler = chosen("hr_scheduler", "Use same scheduler", field("txt2img_scheduler"));
        return {
            img2img: false, first: [width, height], target: target, cut: Boolean(x && y), steps: field("txt2img_steps"), hires_steps: field("txt2img_hires_steps"),
            denoising: field("txt2img_denoising_strength"), sampler: chosen("hr_sampler", "Use same sampler", field("txt2img_sampling")),
            scheduler: scheduler, upscaler: scale ? "None" : field("txt2img_hr_upscaler"), settings: settings(prefix),
            ...shift(scale ? "txt2img_distilled_cfg_scale" : "txt2img_hr_distilled_cfg"),
        };
    }

    function asPicture(prefix, scale) {
        const image = gradioApp().querySelector('#mode_img2img > div[style="display: block;"] img');
        if (!image || !image.naturalWidth) return {error: "Choose a picture to see what will happen."};
        const given = [image.naturalWidth, image.naturalHeight];
        const tab = gradioApp().querySelector("#img2img_tabs_resize button.selected");
        const by = scale || (tab && tab.textContent.includes("by") ? field("img2img_scale") : 0);
        // The Scripts entry rounds to the latent's grid; the host's "Resize by" does not, and what is left over falls off.
        const enlarged = (side) => scale ? Math.max(8, Math.floor(side * scale / 8 + 0.5) * 8) : Math.max(8, Math.floor(side * by));
        const target = by ? given.map(enlarged) : [field("img2img_width"), field("img2img_height")];
        const modes = Array.from(gradioApp().querySelectorAll("#resize_mode input"));
        return {
            img2img: true, given: given, target: target, resize_mode: Math.max(0, modes.findIndex((mode) => mode.checked)), steps: field("img2img_steps"),
            hires_steps: 0, denoising: field("img2img_denoising_strength"), sampler: field("img2img_sampling"), scheduler: field("img2img_scheduler"),
            settings: settings(prefix), ...shift("img2img_distilled_cfg_scale"),
        };
    }

    function escaped(text) {
        const span = document.createElement("span");
        span.textContent = text;
        return span.innerHTML;
    }

    function drawing(data) {
        const [width, height] = data.size;
        const side = 140 / Math.max(width, height);
        const rect = ([x, y, w, h], kind) => `<rect class="${kind}" x="${x}" y="${y}" width="${w}" height="${h}"/>`;
        const windows = data.windows.slice(0, 400).map((window) => rect(window, "apt-window")).join("");
        return `<svg width="${width * side}" height="${height * side}" viewBox="0 0 ${width} ${height}" role="img" ` +
            `aria-label="windows over the picture">${windows}${rect(data.windows[0], "apt-first")}</svg>`;
    }

    function lasting(seconds) {
        if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
        return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${(seconds / 3600).toFixed(1)} hours`;
    }

    // What will happen, in time and memory once something was measured: what this machine took for its last pictures. Texts stand in elements of their
    // own, without numbers, so that the host's localization finds them.
    function expected(data) {
        if (!data.seconds) {
            return `<div class="apt-expected"><b>${data.evaluations}</b> <span>UNet evaluations per picture; how long that takes here is told after the first</span></div>`;
        }
        const whose = data.gpu ? "<span>of the GPU at most so far</span>" : "<span>of memory at most so far</span>";
        const memory = data.memory ? `, <b>${(data.memory / 1024).toFixed(1)} GB</b> ${whose}` : "";
        return `<div class="apt-expected"><b><span>About</span> ${lasting(data.seconds)}</b> <span>per picture on this machine</span>${memory}</div>`;
    }

    function share(part, whole) {
        return whole ? `${Math.round((100 * part) / whole)} %` : "";
    }

    function panel(data) {
        if (data.error) return `<div class="apt-error">${escaped(data.error)}</div>`;
        const dilated = data.phases.some((phase) => phase.dilated);
        const rows = data.phases.map((phase, k) => `<tr><td>${k + 1}</td><td>${phase.size[0]} x ${phase.size[1]}</td><td>${phase.steps}</td>` +
            `<td>${phase.windows}</td>${dilated ? `<td>${phase.dilated}</td>` : ""}<td>${phase.evaluations}</td></tr>`).join("");
        return `<div class="apt-panel">${drawing(data.drawing)}<div>${expected(data)}<table><tr><th>phase</th><th>size</th><th>steps</th>` +
            `<th>windows</th>${dilated ? "<th>views of the whole</th>" : ""}<th>UNet evaluations</th></tr>${rows}</table>` +
            `<div class="apt-note"><span>From</span> ${data.start[0]} x ${data.start[1]}; <span>altogether</span> ${data.evaluations}, ` +
            `${share(data.evaluations, data.demofusion)} <span>of DemoFusion as published, which takes</span> ${data.demofusion}; ` +
            `<span>the host's own pass is worth about</span> ${data.plain}</div>` +
            (data.notes || []).map((note) => `<div class="apt-note">${escaped(note)}</div>`).join("") + `</div></div>`;
    }

    function panels() {
        return [
            {id: "script_txt2img_apt_plan", prefix: "script_txt2img_apt_", on: "script_txt2img_apt_enable-checkbox", ask: () => {
                if (!field("txt2img_hr-checkbox")) return {error: "Hires. fix is off, so APT has nothing to enlarge. Turn Hires. fix on, or choose 'APT upscale' under Script."};
                return asHires("script_txt2img_apt_", 0);
            }},
            {id: "script_img2img_apt_plan", prefix: "script_img2img_apt_", on: "script_img2img_apt_enable-checkbox", ask: () => asPicture("script_img2img_apt_", 0)},
            {id: "script_txt2img_apt_upscale_plan", prefix: "script_txt2img_apt_upscale_", ask: () => asHires("script_txt2img_apt_upscale_", field("script_txt2img_apt_upscale_scale"))},
            {id: "script_img2img_apt_upscale_plan", prefix: "script_img2img_apt_upscale_", ask: () => asPicture("script_img2img_apt_upscale_", field("script_img2img_apt_upscale_scale"))},
        ];
    }

    // What the host says of the last picture of a tab: another one has been made, and was timed.
    function made(id) {
        const said = gradioApp().getElementById(id.includes("txt2img") ? "html_log_txt2img" : "html_log_img2img");
        return said ? said.textContent : "";
    }

    // The one that is chosen, which some hosts load with its first picture alone. Forge's field has no id.
    function checkpoint() {
        const input = gradioApp().querySelector("#setting_sd_model_checkpoint input, .model_selection input");
        return input && input.value ? {checkpoint: input.value} : {};
    }

    const shown = {};

    // A checkpoint may be loaded meanwhile. Not at once: writing the panel is an update of the page, which comes back here.
    function askAgain(id, key) {
        setTimeout(() => {
            if (shown[id] === key) shown[id] = null;
            later();
        }, PATIENCE);
    }

    async function refresh() {
        for (const one of panels()) {
            const root = gradioApp().getElementById(one.id);
            if (!root || root.offsetParent === null || (one.on && !field(one.on))) continue;
            const asked = one.ask();
            const body = JSON.stringify({...asked, ...checkpoint()});
            const key = body + made(one.id);
            const target = root.querySelector(".apt-content") || root.appendChild(Object.assign(document.createElement("div"), {className: "apt-content"}));
            if (shown[one.id] === key && target.innerHTML) continue;
            shown[one.id] = key;
            if (asked.error) {
                target.innerHTML = panel(asked);
                continue;
            }
            try {
                const pass = root.querySelector(".apt-key"); // that this page was served to somebody who may see it
                const headers = {"Content-Type": "application/json", ...(pass ? {"X-APT-Key": pass.dataset.key} : {})};
                const answer = await fetch("./apt/plan", {method: "POST", headers: headers, body: body});
                const data = await answer.json();
                if (shown[one.id] === key) target.innerHTML = panel(answer.ok || data.error ? data : {error: "The plan could not be made; see the console."});
                if (data.error || data.later) askAgain(one.id, key);
            } catch (error) {
                askAgain(one.id, key);
            }
        }
    }

    let timer = null;

    function later() {
        clearTimeout(timer);
        timer = setTimeout(refresh, WAIT);
    }

    onUiLoaded(() => {
        for (const kind of ["input", "change", "click"]) gradioApp().addEventListener(kind, later, true);
        later();
    });
    onAfterUiUpdate(later);
})();
