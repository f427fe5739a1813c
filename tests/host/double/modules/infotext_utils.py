class PasteField(tuple):
    def __new__(cls, component, target, *, api=None):
        return super().__new__(cls, (component, target))


def parse_generation_parameters(x, skip_fields=None):
    """The last line's entries, none of which has a comma in it."""
    return dict(entry.split(": ", 1) for entry in x.strip().split("\n")[-1].split(", ") if ": " in entry)
