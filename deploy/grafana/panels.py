"""The few kinds of panels that the dashboards are made of, and what all of them share.

Layout: panels are placed from left to right, 24 columns wide; a full row starts the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="$datasource")

# (value from which on, colour); the first value is None: from the lowest on.
Steps = Sequence[tuple[float | None, str]]
# value → (what is shown, colour)
States = Mapping[int, tuple[str, str]]
# (legend, expression)
Lines = Sequence[tuple[str, str]]

PanelT = TypeVar("PanelT", stat.Panel, timeseries.Panel, statetimeline.Panel, table.Panel)


def new(title: str, uid: str, description: str, *variables: dashboard.QueryVariable) -> dashboard.Dashboard:
    """Return an empty dashboard that is linked with the others, to be asked of any Prometheus."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["tts"])
        .timezone("browser")
        .time("now-30m", "now")
        .refresh("10s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("TTS")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["tts"])
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable in variables:
        made.with_variable(variable)
    return made


def choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A list to choose one, several or all from, filled by Prometheus; for `=~"$name"`."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def tile(
    title: str,
    expression: str,
    description: str,
    steps: Steps,
    *,
    unit: str = "short",
    decimals: int | None = None,
    empty: str = "–",
    width: int = 3,
) -> stat.Panel:
    """One figure as it is now, on a ground whose colour says whether it is well; `empty` where there is none."""
    panel = stat.Panel().color_mode(common_model.BigValueColorMode.BACKGROUND_SOLID)
    panel = panel.graph_mode(common_model.BigValueGraphMode.NONE).text_mode(common_model.BigValueTextMode.VALUE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).no_value(empty)
    if decimals is not None:
        panel = panel.decimals(decimals)
    panel = _framed(panel, title, description, width, 4).unit(unit).thresholds(_thresholds(steps))
    return panel.with_target(_query("A", expression, instant=True))


def graph(
    title: str,
    lines: Lines,
    description: str,
    *,
    unit: str = "short",
    width: int = 8,
    height: int = 7,
    stacked: bool = False,
    limit: float | None = None,
    top: float | None = None,
    dashed: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
) -> timeseries.Panel:
    """Lines over time. `limit` draws a red line, `top` fixes the end of the axis; `dashed` names the lines that are
    bounds and not figures; `colours` holds those that mean something, by legend."""
    panel = timeseries.Panel().line_width(1).fill_opacity(30 if stacked else 0).min(0)
    panel = panel.show_points(common_model.VisibilityMode.NEVER)
    panel = panel.legend(_legend())
    panel = panel.tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if limit is not None:
        panel = panel.thresholds(_thresholds([(None, "transparent"), (limit, RED)]))
        panel = panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.LINE)
        )
    if top is not None:
        panel = panel.max(top)
    for name in dashed:
        dash = {"dash": [6, 6], "fill": "dash"}
        panel = panel.override_by_name(name, [_property("custom.lineStyle", dash), _colour(GREY)])
    for name, colour in (colours or {}).items():
        panel = panel.override_by_name(name, [_colour(colour)])
    panel = _framed(panel, title, description, width, height).unit(unit)
    for ref, (legend, expression) in zip("ABCDEFGH", lines, strict=False):
        panel = panel.with_target(_query(ref, expression).legend_format(legend))
    return panel


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_model.LegendDisplayMode.LIST)
        .placement(common_model.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def timeline(
    title: str, legend: str, expression: str, states: States, description: str, *, width: int = 16, height: int = 6
) -> statetimeline.Panel:
    """One bar a series, coloured by the state that it is in; the expression gives the state's number."""
    panel = statetimeline.Panel().mappings([_mapping(states)]).merge_values(True)
    panel = panel.row_height(0.85).fill_opacity(85).line_width(0).show_value(common_model.VisibilityMode.NEVER)
    panel = panel.legend(_legend())
    panel = _framed(panel, title, description, width, height)
    return panel.with_target(_query("A", expression).legend_format(legend))


class Column:
    """A column of `rows`: its heading, expression (one sample a row), unit, and the colours of its cells."""

    def __init__(
        self,
        name: str,
        expression: str,
        *,
        unit: str = "short",
        decimals: int | None = None,
        steps: Steps | None = None,
        states: States | None = None,
        width: int | None = None,
    ) -> None:
        self.name, self.expression, self.unit, self.decimals = name, expression, unit, decimals
        self.steps, self.states, self.width = steps, states, width

    def properties(self) -> list[model.DynamicConfigValue]:
        """What Grafana is told of this column's cells."""
        found = [_property("unit", self.unit)]
        if self.decimals is not None:
            found.append(_property("decimals", self.decimals))
        if self.width is not None:
            found.append(_property("custom.width", self.width))
        if self.states is not None:
            found.append(_property("mappings", [_mapping(self.states)]))
        if self.steps is not None:
            found.append(_property("thresholds", _thresholds(self.steps).build()))
        if self.states is not None or self.steps is not None:
            found.append(_property("custom.cellOptions", {"type": "color-background", "mode": "basic"}))
        return found


def rows(
    title: str,
    by: Mapping[str, str],
    columns: Sequence[Column],
    description: str,
    *,
    hidden: Sequence[str] = (),
    width: int = 16,
    height: int = 7,
    empty: str = "–",
) -> table.Panel:
    """One row a value of the labels `by` (label → heading), one column an expression. `hidden` labels are left out."""
    panel = table.Panel().show_header(True).cell_height(common_model.TableCellHeight.SM).no_value(empty)
    panel = _framed(panel, title, description, width, height)
    headings = dict(by)
    order = {label: place for place, label in enumerate(by)}
    for ref, column in zip("ABCDEFGHIJKL", columns, strict=False):
        panel = panel.with_target(_query(ref, column.expression, instant=True).format(PromQueryFormat.TABLE))
        panel = panel.override_by_name(column.name, column.properties())
        field = f"Value #{ref}" if len(columns) > 1 else "Value"
        headings[field], order[field] = column.name, len(order)
    exclude = dict.fromkeys(("Time", *hidden), True)
    return panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={})).with_transformation(
        model.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": exclude, "indexByName": order, "renameByName": headings, "includeByName": {}},
        )
    )


def heading(title: str) -> dashboard.Row:
    """A line of text between panels."""
    return dashboard.Row(title)


def _framed(panel: PanelT, title: str, description: str, width: int, height: int) -> PanelT:
    return panel.title(title).description(description).datasource(SOURCE).span(width).height(height)


def _query(ref: str, expression: str, *, instant: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().ref_id(ref).datasource(SOURCE).expr(" ".join(expression.split()))
    return made.instant() if instant else made.range()


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=colour) for value, colour in steps])
    )


def _mapping(states: States) -> model.ValueMap:
    return model.ValueMap(
        options={
            str(value): model.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(states.items())
        }
    )


def _property(name: str, value: object) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val=name, value=value)


def _colour(colour: str) -> model.DynamicConfigValue:
    return _property("color", {"mode": "fixed", "fixedColor": colour})
