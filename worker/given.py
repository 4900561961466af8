"""What was given on the command line or in the environment, by name, and the sentences where it cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence


class ConfigError(Exception):
    """A sentence for the operator: which option, what is wrong with it, what would be right."""


class Given:
    """The values as they were written, by name; turns each into its type or says what is wrong with it."""

    def __init__(
        self, flags: Mapping[str, str | None], environment: Mapping[str, str], variables: Mapping[str, str | None]
    ) -> None:
        """Take what argparse found, by name; `variables` has the variable of each flag, or None where it has none."""
        self.environment = environment
        self._values: dict[str, str] = {}
        for flag, variable in variables.items():
            name = flag.removeprefix("--").replace("-", "_")
            value = flags[name]
            if value is None and variable is not None:
                value = environment.get(variable) or None
            if value is not None:
                self._values[name] = value

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str) -> str:
        value = self._values.get(name, default).strip()
        if not value:
            raise ConfigError(f"{_flag(name)} is empty.")
        return value

    def text_or_none(self, name: str) -> str | None:
        return self.text(name, "") if self.has(name) else None

    def text_or_empty(self, name: str, fallback_variable: str) -> str:
        return self._values.get(name, self.environment.get(fallback_variable, "")).strip()

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        value = self.text(name, default).lower()
        if value not in choices:
            raise ConfigError(f"{_flag(name)} is {value!r}; it must be one of {', '.join(choices)}.")
        return value

    def switch(self, name: str, default: str = "0") -> bool:
        words = ("0", "1", "false", "true", "no", "yes", "off", "on")
        return self.choice(name, default, words) in ("1", "true", "yes", "on")

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.whole_or_none(name, low, high)
        return default if value is None else value

    def whole_or_none(self, name: str, low: int = 0, high: int = 1_000_000) -> int | None:
        text = self._values.get(name)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not low <= int(text) <= high:
            raise ConfigError(f"{_flag(name)} is {text!r}; it must be a whole number from {low} to {high}.")
        return int(text)

    def seconds(self, name: str, default: float) -> float:
        """Read a duration, or a factor: any finite number that is not negative."""
        text = self._values.get(name)
        if text is None:
            return default
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number <= 86_400:
            raise ConfigError(f"{_flag(name)} is {text!r}; it must be a number from 0 to 86400.")
        return number


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
