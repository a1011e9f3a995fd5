"""A condition on a cell, such as `tokens_per_parameter <= 400 and size != "4M"`: read, and never run as Python.

It has the names of a cell's columns (`raysweep plan --json` shows them) and `tokens_per_parameter`; numbers, "text", true,
false, none and lists of them; + - * / // %, comparisons, `in`, `and`, `or`, `not` and parentheses.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from raysweep.errors import did_you_mean

_Value = Any
_Row = Mapping[str, _Value]

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_ORDER: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_CONSTANTS = {"true": True, "false": False, "none": None}


class Condition:
    """A condition, read once. Raises `ValueError` where it is not one."""

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            problem = error.msg if isinstance(error, SyntaxError) else "it cannot be read"
            raise ValueError(f"{text!r} is not a condition: {problem}") from None

    def holds(self, row: _Row) -> bool:
        """Whether it holds for a row. Raises `ValueError` where it has what a condition cannot have, or no true or false."""
        try:
            answer = self._value(self._tree, row)
        except ArithmeticError as error:
            raise ValueError(f"{self._text!r} has no value for one cell: {error}") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(answer, bool):
            raise ValueError(f"{self._text!r} is {answer!r}, not true or false: compare it with something")
        return answer

    def _value(self, node: ast.AST, row: _Row) -> _Value:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.Name(id=name):
                if name in row:
                    return row[name]
                if name in _CONSTANTS:
                    return _CONSTANTS[name]
                hint = did_you_mean(name, row) or f'; if it is a text, give it quotes: "{name}"'
                raise ValueError(f"{name} is no column of a cell{hint}")
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return [self._value(part, row) for part in parts]
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(self._truth(part, row) for part in parts)
            case ast.BoolOp(op=ast.Or(), values=parts):
                return any(self._truth(part, row) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return not self._truth(part, row)
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return -self._number(part, row)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self._number(left, row), self._number(right, row))
            case ast.Compare():
                return self._compared(node, row)
        raise ValueError(f"{ast.unparse(node)!r} is more than a condition can have")

    def _compared(self, node: ast.Compare, row: _Row) -> bool:
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if type(op) in _ORDER:
                # A setting that a cell does without is neither above nor below anything.
                sides = [self._value(side, row) for side in (left, right)]
                if None in sides:
                    return False
                held = _ORDER[type(op)](self._number(left, row), self._number(right, row))
            else:
                one, other = self._value(left, row), self._value(right, row)
                if isinstance(op, ast.In | ast.NotIn):
                    if not isinstance(other, list):
                        raise ValueError(f'{ast.unparse(right)!r} is no list: size in ["4M", "8M"]')
                    held = (one in other) == isinstance(op, ast.In)
                elif isinstance(op, ast.Is | ast.IsNot):
                    raise ValueError("`is` is not understood: use == or !=")
                else:
                    held = (one == other) == isinstance(op, ast.Eq)
            if not held:
                return False
            left = right
        return True

    def _truth(self, node: ast.AST, row: _Row) -> bool:
        value = self._value(node, row)
        if not isinstance(value, bool):
            raise ValueError(f"{ast.unparse(node)!r} is not true or false: compare it with something")
        return value

    def _number(self, node: ast.AST, row: _Row) -> float:
        value = self._value(node, row)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{ast.unparse(node)!r} is {value!r}, which is no number")
        return value
