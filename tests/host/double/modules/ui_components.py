import gradio as gr


class InputAccordion(gr.Component):
    def __init__(self, value, **kwargs):
        super().__init__(value=value, **kwargs)
