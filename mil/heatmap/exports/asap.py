"""Regions for ASAP: an XML of annotation polygons in level-0 pixels."""

from collections.abc import Sequence
from xml.etree import ElementTree as ET

import numpy as np
from shapely import LinearRing

from feature_extraction.pseudonyms import printable
from mil.heatmap.exports.regions import COLOURS, Region

HOLE = "hole"
"""Last word of the groups of holes: ASAP's polygons have none, so a hole is a polygon of its own to be taken out."""


def regions_asap(regions: Sequence[Region]) -> bytes:
    """Annotations in the groups ``<class>: for`` and ``<class>: against``, and their holes in ``… hole``.

    Args:
        regions: Of one slide.
    """
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    groups: dict[str, str] = {}
    for number, region in enumerate(regions):
        group, colour = f"{printable(region.class_name)}: {region.side}", _hex(COLOURS[region.side])
        named = {f"region {number}": (group, region.polygon.exterior)}
        for place, hole in enumerate(region.polygon.interiors):
            named[f"region {number} {HOLE} {place}"] = (f"{group} {HOLE}", hole)
        for name, (of_group, ring) in named.items():
            groups[of_group] = colour
            _add_polygon(annotations, {"Name": name, "PartOfGroup": of_group, "Color": colour}, ring)
    listed = ET.SubElement(root, "AnnotationGroups")
    for name, colour in groups.items():
        group = ET.SubElement(listed, "Group", {"Name": name, "PartOfGroup": "None", "Color": colour})
        ET.SubElement(group, "Attributes")
    ET.indent(root, "\t")
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _add_polygon(annotations: ET.Element, about: dict[str, str], ring: LinearRing) -> None:
    annotation = ET.SubElement(annotations, "Annotation", {**about, "Type": "Polygon"})
    coordinates = ET.SubElement(annotation, "Coordinates")
    corners = np.array(ring.coords)[:-1].astype(int)  # the last is the first again
    for order, (x, y) in enumerate(corners.tolist()):
        ET.SubElement(coordinates, "Coordinate", {"Order": str(order), "X": str(x), "Y": str(y)})


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02X}" for part in colour)
