"""Finds functions in C++ text by matching brackets: enough for length and parameter limits, no compiler needed.

What is not understood is left out rather than guessed: a construct that fools the scanner is missed, never reported.
"""

import dataclasses
import re


@dataclasses.dataclass
class Function:
    name: str
    line: int         # of the first line of its signature, from 1
    length: int       # lines from there to the closing brace; 0 for a declaration
    parameters: int


RAW_STRING = re.compile(r'R"([^ ()\\\t\v\f\n]{0,16})\(')
NOT_A_NAME = {"if", "for", "while", "switch", "catch", "return", "sizeof", "alignas", "decltype", "requires", "noexcept",
              "static_assert", "throw", "asm", "defined", "operator", "explicit", "__attribute__"}


def blank(text):
    """The same text with comments, strings, characters and directives replaced by spaces, lines kept."""
    out, i, n = [], 0, len(text)

    def skip(end):
        nonlocal i
        out.append(re.sub(r"[^\n]", " ", text[i:end]))
        i = end

    line_start = True
    while i < n:
        c = text[i]
        if line_start and c == "#":
            end = i
            while True:
                end = text.find("\n", end)
                if end < 0 or text[end - 1] != "\\":
                    break
                end += 1
            skip(n if end < 0 else end)
        elif text.startswith("//", i):
            end = text.find("\n", i)
            skip(n if end < 0 else end)
        elif text.startswith("/*", i):
            end = text.find("*/", i)
            skip(n if end < 0 else end + 2)
        elif (raw := RAW_STRING.match(text, i)) and not text[i - 1 : i].isalnum():
            end = text.find(")" + raw.group(1) + '"', i)
            skip(n if end < 0 else end + len(raw.group(1)) + 2)
        elif c == '"' or (c == "'" and not text[i - 1 : i].isalnum()):
            skip(_quoted_end(text, i))
        else:
            out.append(c)
            i += 1
        if i > 0 and i <= n:
            last = text[i - 1]
            line_start = last == "\n" or (line_start and last in " \t")
    return "".join(out)


def _quoted_end(text, i):
    quote, j = text[i], i + 1
    while j < len(text) and text[j] not in (quote, "\n"):
        j += 2 if text[j] == "\\" else 1
    return min(j + 1, len(text))


def functions(text):
    """Every function defined or declared at namespace or class scope."""
    code, found = blank(text), []
    _scan(code, 0, len(code), found)
    return found


def _scan(code, begin, end, found):
    """Reads the statements of one namespace or class body."""
    start, i = begin, begin
    while i < end:
        c = code[i]
        if c == "(" or c == "[":
            i = _closing(code, i, end) + 1
        elif c == ";":
            _statement(code, start, i, None, found)
            start = i = i + 1
        elif c == ":" and re.fullmatch(r"\s*(public|private|protected)\s*", code[start:i]):
            start = i = i + 1
        elif c == "{":
            close = _closing(code, i, end)
            head = code[start:i]
            if _is_scope(head):
                _scan(code, i + 1, close, found)
                start = close + 1
            elif _is_initialiser(head):
                pass  # `member{0}` of a constructor, `= {...}`: the statement goes on
            else:
                _statement(code, start, i, close, found)
                start = close + 1
            i = close + 1
        elif c == "}":
            start = i = i + 1
        else:
            i += 1


def _closing(code, i, end):
    """Index of the bracket that closes the one at i; end - 1 when none does."""
    pairs = {"(": ")", "[": "]", "{": "}"}
    stack = []
    while i < end:
        c = code[i]
        if c in pairs:
            stack.append(pairs[c])
        elif stack and c == stack[-1]:
            stack.pop()
            if not stack:
                return i
        i += 1
    return end - 1


def _is_scope(head):
    words = re.sub(r"\[\[.*?\]\]|alignas\s*\([^)]*\)", " ", head)
    words = re.sub(r"^\s*template\s*<.*?>\s*(?=class|struct|union)", " ", words, flags=re.S)
    return bool(re.match(r'\s*(inline\s+)?(namespace|class|struct|union|enum|extern)\b', words)) and "(" not in words


def _is_initialiser(head):
    if re.search(r"\boperator\s*(=|==|<=>|<=|>=|!=|\+=|-=|\*=|/=)", head):
        return False
    depth_free = _outside_brackets(head)
    if re.search(r"(?<![=!<>])=(?!=)\s*", depth_free):
        return "]" not in depth_free or "(" not in head  # `auto f = [..](..)` is a function
    # In a constructor's initialiser list a brace follows a bare member name.
    return bool(re.search(r"\)\s*(noexcept\s*)?:(?!:).*[\w>]\s*$", head, flags=re.S))


def _outside_brackets(text):
    out, depth = [], 0
    for c in text:
        if c in "([":
            depth += 1
        if depth == 0 or (depth == 1 and c in "([") or (depth == 1 and c in ")]"):
            out.append(c)
        if c in ")]":
            depth -= 1
    return "".join(out)


def _statement(code, start, stop, close, found):
    """Adds the function that code[start:stop] declares, if it does; `close` is its body's last brace."""
    text = code[start:stop]
    lambda_at = re.search(r"=\s*\[", text)
    opening = _parameter_list(text, lambda_at.end() if lambda_at else 0)
    if opening is None:
        return
    name = re.search(r"([~\w:]+|operator\s*\S{1,3})\s*$", text[:opening])
    name = name.group(1) if name else "lambda"
    if close is None and ("=" in _outside_brackets(text[:opening]) or not re.search(r"[\w>&*]\s+[&*]*[~\w:]+\s*$",
                                                                                   text[:opening])):
        return  # a variable, a macro call, a deduction guide
    first = start + (len(text) - len(text.lstrip()))
    line = code.count("\n", 0, first) + 1
    length = 0 if close is None else code.count("\n", first, close) + 1
    parameters = _count_parameters(text[opening + 1 : _closing(text, opening, len(text))])
    found.append(Function(name, line, length, parameters))


def _parameter_list(text, begin):
    """Index of the bracket that opens the parameters, or None."""
    i = begin
    if begin:  # past a lambda's capture
        i = _closing(text, begin - 1, len(text)) + 1
        return text.find("(", i) if text.find("(", i) >= 0 else None
    depth = 0
    while i < len(text):
        c = text[i]
        if c == "<":
            depth += 1
        elif c == ">" and text[i - 1] != "-":
            depth = max(0, depth - 1)
        elif c == "[":
            i = _closing(text, i, len(text))
        elif c == "(":
            before = re.search(r"([A-Za-z_~]\w*)\s*$", text[:i])
            operator = re.search(r"\boperator\s*(\(\)|\S{1,3})\s*$", text[:i])
            if depth == 0 and (operator or (before and before.group(1) not in NOT_A_NAME)):
                return i
            i = _closing(text, i, len(text))
        i += 1
    return None


def _count_parameters(text):
    if not text.strip() or text.strip() == "void":
        return 0
    count, depth = 1, 0
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and text[i - 1] != "-"):
            depth -= 1
        elif c == "," and depth == 0:
            count += 1
    return count
