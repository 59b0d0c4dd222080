"""Modules that do not depend on chains, such as ids, templates, private files, plugins and back-off."""
