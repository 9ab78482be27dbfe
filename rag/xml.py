"""XML from outside, parsed without entities, document types or the network."""

from __future__ import annotations

from typing import Any

from core.errors import DocumentError, first_line


def parse_xml(data: bytes, what: str) -> Any:
    """The root element (raises DocumentError for broken XML; `what` names the file in it)."""
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True
    )
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise DocumentError(f"The {what} file is broken: {first_line(error)}.", "Save it again.") from error


def local(node: Any) -> str:
    """An element's name without its namespace; "" for processing instructions."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def attribute(node: Any, name: str) -> str:
    """An attribute's value, whatever its namespace; "" when it is not there."""
    return next((str(value) for key, value in node.attrib.items() if key.rpartition("}")[2] == name), "")
