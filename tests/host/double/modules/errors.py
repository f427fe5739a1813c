reports = []


def report(message: str, *, exc_info: bool = False) -> None:
    reports.append(message)
