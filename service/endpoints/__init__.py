"""One module a resource: parse, call one function, answer."""
