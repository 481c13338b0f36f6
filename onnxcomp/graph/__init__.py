"""The graph that passes work on: loading, editing, facts about operators, cost."""
