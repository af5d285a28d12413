"""A plan's part in a run's settings: what the network is quantised for, and what of it is protected."""

from __future__ import annotations

import msgspec

from accelsim.int8.network import Network
from r2f.protection import plan
from r2f.settings import Settings, SettingsError


def suited(settings: Settings) -> Settings:
    """The settings that quantise for what their plan says, if they have one. Raises SettingsError that names the plan."""
    if settings.plan is None:
        return settings
    try:
        _, choice = plan.chosen(*plan.named(settings.plan))
    except ValueError as error:
        raise SettingsError(f"--protect {error}") from None
    return msgspec.structs.replace(settings, quantised_for=choice.quantised_for)


def protected(settings: Settings, network: Network) -> Settings:
    """The settings with the protection that their plan has for this network. Raises SettingsError that names the plan."""
    if settings.plan is None:
        return settings
    path, budget = plan.named(settings.plan)
    try:
        scheme = plan.scheme_for(path, budget, settings.scheme, network)
    except ValueError as error:
        raise SettingsError(f"--protect {error}") from None
    return msgspec.structs.replace(settings, scheme=scheme)
