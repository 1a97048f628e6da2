"""SQL that users write and that must pass the gate, and mean the same afterwards."""

from __future__ import annotations

QUERIES = (
    "SELECT * FROM gold.lift_table LIMIT 10",
    (
        "select arm, arm as arm, if(arm = 'a', 9223372036854775707, null) n, if(arm = 'a', "
        "double('nan'), null) f, float(0.1) g, date'1500-01-01' d, timestamp'9999-12-31 23:59:59.5' s, "
        "timestamp_ntz'0001-01-01 00:00:00' z, 1.10BD c, X'00ff' b, map('k', array(date'1500-01-01', "
        "null)) m, struct(9223372036854775707 as x, cast(null as int) as y) u, interval '1-2' year to "
        "month i, date'+12000-01-01' far, null v, true w from gold.toy order by gold.toy.arm"
    ),
    (
        "SELECT treatment, count(*) AS units, avg(uplift) AS mean_uplift, count_if(uplift_lower > 0) AS "
        "sure FROM gold.uplift_scores WHERE model_name = 'x' GROUP BY treatment ORDER BY mean_uplift "
        "DESC"
    ),
    (
        "select a::int, b::decimal(10,2) from gold.x where a not like 'x%' and b not in (1,2) and not c "
        "is null and d is not null and e not between 1 and 2"
    ),
    (
        "select count(distinct a), sum(x) filter (where y > 1), row_number() over (partition by a order "
        "by b desc nulls last rows between 1 preceding and current row) from gold.x group by all having "
        "count(*) > 1"
    ),
    (
        "select transform(array(1,2), x -> x + 1), aggregate(a, 0, (acc, x) -> acc + x), filter(a, v -> "
        "v > 1), a[0], m['k'], s.f.g from gold.x"
    ),
    "select t.v from gold.x lateral view explode(a) t as v",
    "select * from gold.x lateral view outer posexplode(a) t as p, v",
    "select * from values (1,'a'),(2,'b') as t(a,b)",
    "values (1),(2)",
    (
        "with a as (select 1 x), b(y) as (select x from a) select * from a join b on a.x = b.y left anti "
        "join gold.x c using (id) cross join gold.y full outer join gold.z z on true"
    ),
    "select 1 union all select 2 except select 3 intersect select 4 order by 1 limit 3 offset 1",
    (
        "select case when a then 1 else 2 end, case a when 1 then 'x' end, extract(year from ts), a || "
        "b, a <=> b, a div b, a % b, -a, ~a, a & b | c ^ d, a == b, a != b from gold.x"
    ),
    "select * from gold.x version as of 3",
    "select * from gold.x timestamp as of '2024-01-01'",
    "select * from gold.x pivot (sum(a) as s for b in ('x' as x, 'y'))",
    "select * from gold.x unpivot (v for n in (a, b))",
    "select percentile_cont(0.5) within group (order by x) from gold.x",
    "select listagg(a, ',') within group (order by a) from gold.x",
    (
        "select first(a) ignore nulls, last_value(a) ignore nulls over (order by b), lag(a, 1) over w "
        "from gold.x window w as (order by b)"
    ),
    "select * except (a) from gold.x",
    "select t.* from gold.x t",
    "select `a b`.`c.d` from gold.x as `a b`",
    "select a from gold.x group by a, b with rollup",
    "select a from gold.x group by cube(a, b)",
    "select a from gold.x group by grouping sets ((a), (a,b), ())",
    "select current_date, current_timestamp(), now(), current_date() - interval 30 days",
    (
        "select a from gold.x where exists (select 1 from gold.y y where y.a = x.a) and a in (select a "
        "from gold.y) and b > (select max(b) from gold.y)"
    ),
    (
        "select a rlike 'x', a not rlike 'y', a like 'x' escape '!', a ilike 'y', a like any ('a', 'b'), "
        "a like all ('a')"
    ),
    "select 1.5e-3, 1e10, .5, 1., 10L, 3S, 1Y, 1.0D, 1.0F, 12345678901234567890.123456789012345678BD",
    ("select 'it''s', \"double \"\"x\"\" 'y'\", 'tab\\tnew\\\\', r'\\d+', 'uni\\u0041', '100\\%', 'a\\'b'"),
    (
        "select try_cast(a as double), cast(a as array<struct<x:int,y:map<string,decimal(10,2)>>>), "
        "cast(a as timestamp_ntz), cast(a as timestamp), cast(a as date), cast(a as string), cast(a as "
        "interval day to second) from gold.x"
    ),
    (
        "select date_trunc('month', ts), date_add(d, 1), datediff(day, a, b), timestampadd(hour, 1, ts), "
        "dateadd(day, 1, a), date_format(ts, 'yyyy-MM-dd'), trunc(d, 'MM'), to_date(a, 'dd.MM.yyyy') "
        "from gold.x"
    ),
    (
        "select approx_percentile(a, array(0.5, 0.9), 100), percentile(a, 0.5), max_by(a, b), "
        "collect_list(a), array_agg(distinct a), mode(a), median(a) from gold.x"
    ),
    "select explode(a) as (k, v), inline(b), posexplode(c) from gold.x",
    "select * from range(10), explode(array(1,2)) as t(x)",
    "select * from gold.x, lateral (select * from gold.y y where y.a = x.a) l",
    "select a from gold.x where (a, b) in ((1,2),(3,4)) and a = some_col",
    "(select 1) union (select 2)",
    "select a from (select * from gold.x) where true",
    (
        "select left(a, 2), right(a, 2), replace(a, 'x'), log(2, a), mod(a, 2), date(a), day(a), "
        "year(a), month(a), char(65), timestamp(a), array(1,2)[0], element_at(a, 1), struct(1, 2).col1, "
        "named_struct('a', 1).a, size(a), format_string('%s', a), nvl(a,b), any(a), some(a), map() from "
        "gold.x"
    ),
    "select a from gold.x qualify row_number() over (order by a) = 1",
    "select * from gold.x natural join gold.y",
    "select * from gold.x left semi join gold.y on x.a = y.a",
    "select a as `x y`, count(*) over () from gold.x order by 1 nulls first, 2 desc limit all",
    ("select interval '1 day 2 hours', interval 1 day 2 hours, interval -3 months, interval '3' day + a from gold.x"),
    "select * from gold.x a inner join gold.y b on a.i = b.i left outer join gold.z c on c.i = a.i",
    "select not a = b and not exists(select 1), not(a), -(-a), - -1 from gold.x",
    "select all a from gold.x",
    "select distinct a from gold.x",
    "select count(*) filter (where a) over (partition by b) c from gold.x group by b, c order by all",
    "with recursive r(n) as (select 1 union all select n + 1 from r where n < 5) select * from r",
    "select a from gold.x where a > 1 -- c",
    "select /* hi */ a from gold.x",
    "select lower(a) collate utf8_lcase, a::string::int, (a)::int + 1, -a::int, a.b::int from gold.x",
    "select a between 1 and 2 and b, a in ('x'), a in (1, null) from gold.x",
    "select sum(a) over (order by b range between interval 7 days preceding and current row) from gold.x",
    "select 1 a -- ; drop",
    (
        "select position('a', b), substring(a, 2, 3), trim(a), substr(a, 2), overlay(a, 'x', 2), "
        "floor(a), ceil(a, 1), chr(65), decode(a, 1, 'x'), initcap(a) from gold.x"
    ),
    "describe gold.lift_table",
    "DESCRIBE HISTORY gold.lift_table",
    "describe detail silver.x",
    "describe table extended gold.lift_table",
    "show tables in gold",
    "show schemas",
    "show columns in gold.x",
    "explain select 1",
    "explain formatted with a as (select 1) select * from a",
    "select 1;",
    "select t.`user` from (select 1 as `user`) t",
    "SELECT bucket, uplift FROM gold.lift_table WHERE run_id = 'lift-1' AND cut = 'decile' ORDER BY int(bucket)",
    (
        "SELECT campaign, count(DISTINCT unit_id) FROM silver.training_shop TIMESTAMP AS OF '2026-01-01' "
        "GROUP BY campaign"
    ),
    "SELECT * FROM spark_catalog.gold.x",
    ("WITH a AS (SELECT 1 x), a2 AS (SELECT * FROM a) SELECT * FROM (SELECT * FROM a2) WHERE x IN (SELECT x FROM a)"),
    ("SELECT count_if(uplift > 0) / count(*) AS share, round(avg(uplift), 4), stddev(uplift) FROM gold.uplift_scores"),
    (
        "SELECT unit_id, uplift FROM gold.uplift_scores s WHERE NOT EXISTS (SELECT 1 FROM bronze.consent "
        "c WHERE c.unit_id = s.unit_id)"
    ),
    "SELECT rand(7), uuid(), shuffle(array(1, 2)), now(), rand() < .5 FROM gold.x",
    "SELECT a FROM gold.x -- all of them\nWHERE a > 1 /* and\nmore */",
    "SELECT `größe`, `a``b` FROM gold.x WHERE `größe` = 'ä\\n'",
    "DESCRIBE HISTORY gold.x LIMIT 3",
    "  ( SELECT 1 ) ; ",
    "SELECT\ta\r\nFROM gold.x",
)

EXPRESSIONS = (
    "age < 18",
    "coalesce(age < 18, false)",
    "coalesce(age > 55, false)",
    "city = 'x' AND age > 60",
    "0.1 + coalesce(age, 40) / 1000",
    "0.3",
    "stop IS NULL",
    "to_timestamp(occurred_at, 'dd.MM.yyyy HH:mm')",
    "timestamp_millis(bigint(occurred_at))",
    "timestamp_millis(try_cast(occurred_at AS bigint))",
    "replace(value, ',', '.')",
    "a = 'select'",
    "'x'",
    "coalesce(string(try_cast(value as double)), value)",
    "try_to_timestamp(occurred_at, 'dd.MM.yyyy HH:mm')",
    "to_date(CASE WHEN unit_id = 'day' THEN occurred_at END, 'yyyyMMdd')",
    "bigint(occurred_at)",
    "zip in ('1', '2') or zip is null",
    "name like 'a%' and not name rlike '^x'",
    "name not in ('a', \"b\")",
    "signup >= date'2025-01-01' and signup < timestamp'2025-02-01 00:00:00'",
    "datediff(date'2025-01-01', signup) between 0 and 30",
    "signup + interval 30 days > date'2025-01-01'",
    "least(0.5, 1e-3 * price) :: decimal(10, 4)",
    "exists(tags, t -> t = 'vip') and size(tags) > 1",
    "home.city = 'x' and tags[0] <=> null",
    "upper(trim(name)) = 'O''BRIEN'",
    "if(age is null, 1, 2) % 2 = 1",
    "`odd name` > 1 -- a remark",
    "get_json_object(blob, '$.a') is not null",
    "not (age > 1)",
    "true",
    "age & 1 = 1",
    "md5(name) > 'a'",
)
