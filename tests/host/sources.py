"""What is read out of a host's sources and out of its double, to compare the two."""

import ast
import inspect

__all__ = ["arguments", "definitions", "parameters"]


def parameters(function):
    marks: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [marks.get(one.kind, "") + one.name for one in inspect.signature(function).parameters.values()]


def definitions(body):
    found = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.setdefault(node.name, node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name): node for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found |= {name.id: node for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def arguments(function):
    args = function.args
    starred = [(args.vararg, "*"), (args.kwarg, "**")]
    marked = {mark: [mark + arg.arg] if arg else [] for arg, mark in starred}
    return [arg.arg for arg in args.posonlyargs + args.args] + marked["*"] + [arg.arg for arg in args.kwonlyargs] + marked["**"]
