"""One file per public checkpoint layout: `<owner>__<repo>.py` in lower case, defining `layout(context) -> Layout`."""
