-- Something that may get lost, for the run's sink; nothing where the run is closed. A: run, line
note(need(A.run, 'string', 'run'), 'event', need(A.line, 'string', 'line'))
return 'OK'
