from typing import NamedTuple

AlwaysVisible = object()
scripts_data = []


class ScriptClassData(NamedTuple):
    script_class: type
    path: str
    basedir: str
    module: object


class PostSampleArgs:
    def __init__(self, samples):
        self.samples = samples


class PostprocessImageArgs:
    def __init__(self, image):
        self.image = image


class Script:
    is_img2img = False
    infotext_fields = None
    paste_field_names = None
    section = None
    create_group = True

    def title(self):
        raise NotImplementedError

    def ui(self, is_img2img):
        pass

    def show(self, is_img2img):
        return True

    def run(self, p, *args):
        pass

    def before_process(self, p, *args):
        pass

    def process(self, p, *args):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def post_sample(self, p, ps, *args):
        pass

    def postprocess_batch(self, p, *args, **kwargs):
        pass

    def after_component(self, component, **kwargs):
        pass

    def postprocess_image(self, p, pp, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass

    def elem_id(self, item_id):
        return f"script_{self.title().lower()}_{item_id}"


class ScriptRunner:
    """Calls one always visible script at the host's places; what it raises there is swallowed, as the host does, and kept in `reports`.

    Attributes:
        args: the job's arguments, of which that script's come first.
        alwayson_scripts: that script, and others that a test puts behind it, which are told of the beginning and the end of a job.
    """

    def __init__(self, script, *args):
        self.script, self.args, self.reports = script, args, []
        script.args_from, script.args_to = 0, len(args)
        self.alwayson_scripts = [script]

    def _call(self, name, p, *more, **named):
        try:
            getattr(self.script, name)(p, *more, *self.args[: self.script.args_to], **named)
        except AssertionError:  # a test's own, made in a callback
            raise
        except Exception as error:
            self.reports.append(error)

    def before_process(self, p):
        self._call("before_process", p)

    def process(self, p):
        self._call("process", p)
        for other in self.alwayson_scripts[1:]:
            other.process(p)

    def process_before_every_sampling(self, p, **kwargs):
        self._call("process_before_every_sampling", p, **kwargs)

    def post_sample(self, p, ps):
        self._call("post_sample", p, ps)

    def postprocess_batch(self, p, images, **kwargs):
        self._call("postprocess_batch", p, images=images, **kwargs)

    def postprocess_image(self, p, pp):
        self._call("postprocess_image", p, pp)

    def postprocess(self, p, processed):
        self._call("postprocess", p, processed)
        for other in self.alwayson_scripts[1:]:
            other.postprocess(p, processed)
