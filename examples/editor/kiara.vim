" Code completion in Vim 9 and Neovim by a Kiara server on this machine.
"
"   kiara-run serve bundles/demo
"   vim -S examples/editor/kiara.vim some.py
"
" In insert mode, CTRL-X CTRL-U offers continuations of the text before the cursor, up to the end of the line.
" g:kiara_url and g:kiara_choices change where it asks and how many it offers.

let g:kiara_url = get(g:, 'kiara_url', 'http://127.0.0.1:8000')
let g:kiara_choices = get(g:, 'kiara_choices', 3)
let s:lines = 60

function! s:Before() abort
  let l:first = max([1, line('.') - s:lines])
  return join(getline(l:first, line('.') - 1) + [strpart(getline('.'), 0, col('.') - 1)], "\n")
endfunction

function! s:Ask(prompt) abort
  let l:body = {'prompt': a:prompt, 'max_tokens': 24, 'temperature': 0.4, 'n': g:kiara_choices, 'stop': ["\n"], 'seed': 1}
  let l:curl = 'curl -sS --max-time 20 -H "Content-Type: application/json" --data-binary @- '
  let l:answer = system(l:curl . shellescape(g:kiara_url . '/v1/completions'), json_encode(l:body))
  if v:shell_error
    throw 'kiara: ' . trim(l:answer)
  endif
  let l:object = json_decode(l:answer)
  if has_key(l:object, 'error')
    throw 'kiara: ' . l:object.error.message
  endif
  return uniq(sort(filter(map(l:object.choices, 'v:val.text'), 'v:val =~# "\\S"')))
endfunction

function! KiaraComplete(findstart, base) abort
  if a:findstart
    let s:prompt = s:Before()
    return col('.') - 1
  endif
  try
    return s:Ask(s:prompt)
  catch /^kiara:/
    echomsg v:exception
    return []
  endtry
endfunction

set completefunc=KiaraComplete
