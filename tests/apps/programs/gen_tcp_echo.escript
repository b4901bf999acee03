#!/usr/bin/env escript
%% -*- erlang -*-
%% An echo server and its clients on gen_tcp, in passive, active and {active, once} mode, with and
%% without packet framing.
%%
%%     gen_tcp_echo.escript serve PORT
%%     gen_tcp_echo.escript work  PORT ROUNDS

-define(HOST, {10, 77, 0, 1}).

main(["serve", Port]) ->
    {ok, Listener} = gen_tcp:listen(list_to_integer(Port),
        [binary, {ip, ?HOST}, {active, false}, {reuseaddr, true}, {nodelay, true}, {backlog, 100}]),
    accept(Listener);
main(["work", PortText, RoundsText]) ->
    Port = list_to_integer(PortText),
    Rounds = list_to_integer(RoundsText),
    Self = self(),
    Modes = [passive, active, once, packet, passive, active, once, packet],
    Workers = [spawn_link(fun() -> Self ! {self(), exchange(Mode, N, Port, Rounds)} end)
               || {N, Mode} <- lists:zip(lists:seq(1, length(Modes)), Modes)],
    Digests = [receive {Worker, Digest} -> Digest end || Worker <- Workers],
    io:format("digest ~s~n", [hex(crypto:hash(sha256, Digests))]),
    io:format("exchanges/s ~p~n", [ping(Port, Rounds * 20)]).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Echo = spawn(fun() -> receive go -> echo(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Echo),
    Echo ! go,
    accept(Listener).

echo(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Data} -> ok = gen_tcp:send(Socket, Data), echo(Socket);
        {error, closed} -> gen_tcp:close(Socket)
    end.

options(passive) -> [{active, false}];
options(active) -> [{active, true}];
options(once) -> [{active, once}];
options(packet) -> [{active, false}, {packet, 4}].

exchange(Mode, Number, Port, Rounds) ->
    {ok, Socket} = gen_tcp:connect(?HOST, Port, [binary, {nodelay, true} | options(Mode)]),
    rand:seed(exsss, {Number, 2, 3}),
    Context = lists:foldl(
        fun(Round, Context) ->
            Size = element(1 + (Round rem 4), {1, 100, 5000, 100000}),
            Message = rand:bytes(Size),
            ok = gen_tcp:send(Socket, Message),
            Answer = answer(Mode, Socket, Size, []),
            Message = Answer,
            crypto:hash_update(Context, Answer)
        end, crypto:hash_init(sha256), lists:seq(1, Rounds)),
    ok = gen_tcp:shutdown(Socket, write),
    ok = ended(Mode, Socket),
    crypto:hash_final(Context).

answer(_, _, 0, Parts) -> iolist_to_binary(lists:reverse(Parts));
answer(passive, Socket, Size, []) -> {ok, Data} = gen_tcp:recv(Socket, Size, 30000), Data;
answer(packet, Socket, _, []) -> {ok, Data} = gen_tcp:recv(Socket, 0, 30000), Data;
answer(Mode, Socket, Size, Parts) ->
    receive
        {tcp, Socket, Data} ->
            case Mode of once -> inet:setopts(Socket, [{active, once}]); _ -> ok end,
            answer(Mode, Socket, Size - byte_size(Data), [Data | Parts])
    after 30000 -> exit(nothing_came)
    end.

ended(Mode, Socket) when Mode =:= passive; Mode =:= packet ->
    {error, closed} = gen_tcp:recv(Socket, 0, 30000), ok;
ended(_, Socket) ->
    receive {tcp_closed, Socket} -> ok after 30000 -> exit(no_end) end.

ping(Port, Rounds) ->
    {ok, Socket} = gen_tcp:connect(?HOST, Port, [binary, {nodelay, true}, {active, false}]),
    Message = binary:copy(<<"x">>, 100),
    Start = erlang:monotonic_time(microsecond),
    [begin
         ok = gen_tcp:send(Socket, Message),
         {ok, Message} = gen_tcp:recv(Socket, 100, 30000)
     end || _ <- lists:seq(1, Rounds)],
    Rounds * 1000000 div (erlang:monotonic_time(microsecond) - Start).

hex(Bytes) -> [io_lib:format("~2.16.0b", [Byte]) || <<Byte>> <= Bytes].
