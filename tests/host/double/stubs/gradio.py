"""As much of gradio as laying out the controls takes: components remember how they were made."""


class Component:
    def __init__(self, **kwargs):
        self.kwargs, self.events, self.changes = kwargs, [], []

    def input(self, **kwargs):
        self.events.append(kwargs)

    def change(self, **kwargs):
        self.changes.append(kwargs)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


class Row(Component):
    pass


class HTML(Component):
    pass


class Radio(Component):
    pass


class Slider(Component):
    pass


class Checkbox(Component):
    pass


class Textbox(Component):
    pass


class Dropdown(Component):
    pass


class Accordion(Component):
    def __init__(self, label, **kwargs):
        super().__init__(label=label, **kwargs)


def update(**kwargs):
    return kwargs
