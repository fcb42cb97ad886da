create table if not exists meta (key text primary key, value text not null);

create table if not exists item (
  id text primary key,
  kind text not null,              -- plain; gold: known answer; part: a pair that sorting asked for
  first real not null,             -- lower is asked first
  ord real not null,               -- among equals
  taken integer not null default 0, -- places held or judged, of the overlap
  record text not null,
  gold text
);
create index if not exists item_next on item (kind, first, ord);

-- Who was given what. A place is held by one person, who alone may judge from it.
create table if not exists place (
  id integer primary key,
  item text not null references item (id),
  annotator text not null,
  kind text not null,              -- plain, gold, repeat
  seed integer not null,
  state text not null,             -- open, done, skipped, expired
  turn integer not null default 0, -- judgements made from it
  seen real not null,              -- when it was first shown, or last taken up again; seconds
  unique (item, annotator, kind)
);
create index if not exists place_open on place (seen) where state = 'open';
create index if not exists place_of on place (annotator, state);

create table if not exists judgement (
  n integer primary key autoincrement,
  id text not null unique,
  place integer not null references place (id),
  item text not null,
  annotator text not null,
  kind text not null,
  status text not null,            -- ok, skip, or undone: the annotator took it back
  replaces text unique references judgement (id),
  record text not null
);
-- One verdict for each item and annotator; a later one replaces it, and only one does.
create unique index if not exists judgement_once on judgement (item, annotator, kind)
  where replaces is null;
create index if not exists judgement_place on judgement (place);
create index if not exists judgement_of on judgement (item, annotator, kind);
create trigger if not exists judgement_kept before update on judgement
  begin select raise(abort, 'judgements are append-only'); end;
create trigger if not exists judgement_never_deleted before delete on judgement
  begin select raise(abort, 'judgements are append-only'); end;

create view if not exists head as
  select j.*, p.seed from judgement j join place p on p.id = j.place
  where j.status != 'undone' and not exists (select 1 from judgement r where r.replaces = j.id);
