"""Chat templates that together use every construct found in the templates of published models."""

BASIC = {
    "plain loop": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "system apart": (
        "{%- if messages[0]['role'] == 'system' %}{%- set head = messages[0]['content'] | trim %}"
        "{%- set rest = messages[1:] %}{%- else %}{%- set head = 'Be brief.' %}{%- set rest = messages %}{%- endif %}\n"
        "{{- bos_token ~ '[SYS]' ~ head ~ '[/SYS]' }}\n"
        "{%- for m in rest %}{{- '[' ~ m.role | upper ~ ']' ~ m.content }}{%- endfor %}"
    ),
    "turns must alternate": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) and m.role != 'system' %}"
        "{{ raise_exception('user and assistant take turns') }}{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ),
    "roles make tokens": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n",
    "namespace and macros": (
        "{%- macro line(m, first=false) -%}{{ '* ' if first else '- ' }}{{ m.content | replace('\\n', ' ') }}\n"
        "{% endmacro -%}{%- set ns = namespace(n=0, text='') -%}{%- for m in messages -%}"
        "{%- set ns.n = ns.n + 1 -%}{%- set ns.text = ns.text ~ line(m, loop.first) -%}{%- endfor -%}"
        "{{ ns.n }}\n{{ ns.text }}{{ '-' * 10 }}"
    ),
    "loop control": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% if not loop.last %} | {% endif %}{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "thought is dropped": (
        "{% for m in messages %}{% set c = m.content %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}{{ c }};{% endfor %}"
    ),
    "date": "Today is {{ strftime_now('%d %B %Y') }}.{{ messages[0].content }}",
    "arithmetic": (
        "{{ messages | length * 2 ** 3 // 3 % 7 }}{{ 'ab' * 3 }}{{ '%s-%05.1f' % ('x', 2.5) }}"
        "{{ '{:>8}|'.format('é') }}"
    ),
    "filters": (
        "{{ messages | map(attribute='role') | unique | join(', ') }}"
        "{{ messages | selectattr('role', 'eq', 'user') | list | length }}"
        "{{ messages[-1].content | default('none', true) | indent(4) | title }}"
        "{{ messages | rejectattr('role', 'in', ['user']) | list | tojson }}"
    ),
    "set block": "{% set head %}A{{ messages[0].content }}B{% endset %}{{ head | trim | length }}{{ head }}",
    "tests": (
        "{% for m in messages %}{% if m.content is string and m.content is not none and m.name is not defined %}"
        "{{ m.content[:5] }}{{ m.content[::-1] }}{% elif m.content is iterable %}?{% endif %}{% endfor %}"
        "{{ tools is none }}{{ documents is none }}{{ nothing is defined }}"
    ),
}
TOOLS = {
    "tools as json": (
        "{% if tools %}{{ tools | tojson }}\n{{ tools[0].function | tojson(indent=2) }}{% endif %}"
        "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    ),
    "tools as code": (
        "{% for tool in tools or [] %}{% set f = tool.function %}type {{ f.name }} = ("
        "{% for name, p in f.parameters.properties.items() %}{{ name }}"
        "{{ '' if name in f.parameters.required else '?' }}: "
        "{{ p.type }}{% if not loop.last %}, {% endif %}{% endfor %}) => any;\n{% endfor %}{{ messages[-1].content }}"
    ),
    "calls": (
        "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}"
        "<call>{{ {'name': c.function.name, 'arguments': c.function.arguments} "
        "| tojson(separators=(',', ':'), sort_keys=true) }}"
        ""
        "</call>{% endfor %}{% elif m['role'] == 'tool' %}<result>{{ m.content }}</result>{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    ),
    "documents": (
        "{% for d in documents or [] %}[{{ loop.index }}] {{ d['title'] }}: {{ d.text | wordwrap(20) }}\n{% endfor %}"
        "{{ messages[0].content }}{% for key, group in messages | groupby('role') %}{{ key }}="
        "{{ group | count }};{% endfor %}"
    ),
    "recursion": (
        "{% macro show(v, depth=0) %}{% if v is mapping %}{% for k in v | dictsort %}{{ '  ' * depth }}{{ k[0] }}:\n"
        "{{ show(k[1], depth + 1) }}{% endfor %}{% elif v is sequence and v is not string %}{% for i in v %}"
        "{{ show(i, depth) }}{% endfor %}{% else %}{{ '  ' * depth }}{{ v }}\n{% endif %}{% endmacro %}"
        "{{ show(tools) }}"
    ),
    "refuses a system message": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
        "{% for m in messages %}<{{ 'model' if m.role == 'assistant' else m.role }}>{{ m.content }}{% endfor %}"
    ),
}
TEMPLATES = {**BASIC, **TOOLS}


def _grown(start: str, step: str, shown: str = "ns.x") -> str:
    """A template that assigns `step` to `ns.x` sixty times and then prints `shown`."""
    steps = f"{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(x={start}) %}}{steps}{{{{ {shown} }}}}"


# Each must be refused quickly and with little memory.
HARMFUL = {
    "numbers": "{{ 9 ** (9 ** 9) }}",
    "squares": _grown("9", "ns.x * ns.x"),
    "product": "{{ 'x' * 10000000000 }}",
    "product of lists": "{{ [messages] * 10000000000 }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent width given": "{{ '%*d' % (1000000000, 1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format width given": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'x' | center(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "tabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'x\\ny' | indent(1000000000) }}",
    "json indent": "{{ [1, 2] | tojson(indent=1000000000) }}",
    "doubling": _grown("'ab'", "ns.x + ns.x"),
    "doubling by ~": _grown("'ab'", "ns.x ~ ns.x"),
    "doubling by join": _grown("'ab'", "[ns.x, ns.x] | join"),
    "doubling by blocks": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% set ns.x = y %}{% endfor %}{{ ns.x }}"
    ),
    "doubling by replace": (
        _grown("'aa'", "ns.x.replace('a', ns.x)")
    ),
    "doubling by format": _grown("'ab'", "'%s%s' % (ns.x, ns.x)"),
    "lists in lists": _grown("[1]", "[ns.x, ns.x]"),
    "lists as json": _grown("[1]", "[ns.x, ns.x]", "ns.x | tojson"),
    "lists as text": _grown("[1]", "[ns.x, ns.x]", "ns.x | string | length"),
    "lists in percent": _grown("[1]", "[ns.x, ns.x]", "'%s' % ns.x"),
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "long range": "{% for i in range(10000000) %}x{% endfor %}",
    "endless macro": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "much output": "{% for a in range(9999) %}{% for b in range(9999) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}",
}  # fmt: skip
