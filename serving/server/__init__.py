"""An OpenAI-compatible server around one engine; it needs nothing else of slipstream.

app.py       routes                         main.py      the command
fields.py    what requests say              answers.py   OpenAI's shape of an answer
text.py      tokens become text             errors.py    OpenAI's shape of an error
decoding.py  one request after the other, token by token
"""
